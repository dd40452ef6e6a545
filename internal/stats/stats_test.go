package stats

import (
	"strings"
	"testing"
	"time"
)

func TestWrite(t *testing.T) {
	tab := Table{Wall: 10 * time.Second}
	tab.Add("port", "ttyS0", 4, 2*time.Second)
	tab.Add("syscall", "SYSCALL", 1000, 5*time.Second)
	tab.Add("port", "RTC", 3, 0)
	tab.Add("port", "never", 0, 0)
	var b strings.Builder
	if err := tab.Write(&b); err != nil {
		t.Fatal(err)
	}
	out := b.String()
	if strings.Contains(out, "never") {
		t.Errorf("a row that was not counted is shown:\n%s", out)
	}
	var at []int
	for _, want := range []string{"SYSCALL", "5ms", "50.0 %", "ttyS0", "500ms", "20.0 %", "RTC", "10s"} {
		i := strings.Index(out, want)
		if i < 0 {
			t.Errorf("%q is missing:\n%s", want, out)
		}
		at = append(at, i)
	}
	for i := 1; i < len(at); i++ {
		if at[i] < at[i-1] {
			t.Errorf("rows are not in order of cost:\n%s", out)
			break
		}
	}
}
