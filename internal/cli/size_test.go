package cli

import "testing"

func TestParseSize(t *testing.T) {
	tests := []struct {
		in   string
		want Size
		out  string // as String renders it
	}{
		{"512M", 512 << 20, "512M"},
		{"1G", 1 << 30, "1G"},
		{"1g", 1 << 30, "1G"},
		{"1GiB", 1 << 30, "1G"},
		{"1GB", 1 << 30, "1G"},
		{"1.5G", 1536 << 20, "1536M"},
		{"2T", 2 << 40, "2T"},
		{"64k", 64 << 10, "64K"},
		{"536870912", 512 << 20, "512M"},
		{"4097", 4097, "4097"},
		{"512B", 512, "512"},
		{"0", 0, "0"},
		{" 1M ", 1 << 20, "1M"},
		{"18446744073709551615", 1<<64 - 1, "18446744073709551615"},
	}
	for _, tt := range tests {
		got, err := ParseSize(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", tt.in, got, err, tt.want)
		}
		if s := got.String(); s != tt.out {
			t.Errorf("ParseSize(%q) prints as %s, want %s", tt.in, s, tt.out)
		}
	}
}

func TestParseSizeErrors(t *testing.T) {
	for _, in := range []string{"", "M", "lots", "-1", "-1M", "+1M", "1X", "1e9", "1e3M", "0x10M", "1.5", "nanM", "infM",
		"1_0M", "20000000T", "99999999999999999999", "1MM", "1 2M", "512MiBs"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", in, got)
		}
	}
}
