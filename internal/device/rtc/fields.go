package rtc

import "time"

// encode gives a number the form that register B selects.
func (r *RTC) encode(v int) uint8 {
	if r.cmos[regB]&bDM != 0 {
		return uint8(v)
	}
	return uint8(v/10<<4 | v%10)
}

// decode is its inverse. Digits that are none give some number.
func (r *RTC) decode(v uint8) int {
	if r.cmos[regB]&bDM != 0 {
		return int(v)
	}
	return int(v>>4)*10 + int(v&0xf)
}

// encodeHour: in 12-hour form 12 stands for 0 and bit 7 for PM.
func (r *RTC) encodeHour(h int) uint8 {
	if r.cmos[regB]&b24 != 0 {
		return r.encode(h)
	}
	v := r.encode((h+11)%12 + 1)
	if h >= 12 {
		v |= 0x80
	}
	return v
}

func (r *RTC) decodeHour(v uint8) int {
	if r.cmos[regB]&b24 != 0 {
		return r.decode(v)
	}
	h := r.decode(v&0x7f) % 12
	if v&0x80 != 0 {
		h += 12
	}
	return h
}

// field returns a time register, and false when reg is none.
func (r *RTC) field(t time.Time, reg int) (uint8, bool) {
	switch reg {
	case regSeconds:
		return r.encode(t.Second()), true
	case regMinutes:
		return r.encode(t.Minute()), true
	case regHours:
		return r.encodeHour(t.Hour()), true
	case regWeekday:
		return r.encode(int(t.Weekday()) + 1), true
	case regDay:
		return r.encode(t.Day()), true
	case regMonth:
		return r.encode(int(t.Month())), true
	case regYear:
		return r.encode(t.Year() % 100), true
	case CenturyRegister:
		return r.encode(t.Year() / 100 % 100), true
	}
	return 0, false
}

// setField changes one register of the guest's time, and returns false when
// reg is none. Values out of range are brought into it, as time.Date does.
func (r *RTC) setField(reg int, v uint8) bool {
	t := r.time()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	n := r.decode(v)
	switch reg {
	case regSeconds:
		second = n
	case regMinutes:
		minute = n
	case regHours:
		hour = r.decodeHour(v)
	case regWeekday:
		return true // follows from the date
	case regDay:
		day = n
	case regMonth:
		month = time.Month(n)
	case regYear:
		year = year/100*100 + n
	case CenturyRegister:
		year = n*100 + year%100
	default:
		return false
	}
	set := time.Date(year, month, day, hour, minute, second, t.Nanosecond(), time.UTC)
	if r.cmos[regB]&bSET != 0 {
		r.held = set
	} else {
		r.offset += set.Sub(t)
	}
	r.seen = set.Unix()
	return true
}
