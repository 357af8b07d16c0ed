package view

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// None stands where there is no value.
const None = "–"

// Bytes writes a number of bytes in binary units: 512 MiB, 9.6 GiB, 128 GiB. Memory, files and rates are all told in
// these, because devices are sized in them and the guide's required_*_mb are MiB too; one unit everywhere means
// that numbers on a page add up. Below 10 there is one decimal, unless it is .0.
func Bytes(n int64) string { return registry.Bytes(n) }

// BytesOr writes n as Bytes does, or None when it is 0.
func BytesOr(n int64) string {
	if n == 0 {
		return None
	}
	return Bytes(n)
}

// Percent writes part of whole as a whole number, 0 to 100. 99.9 is told as 99: nothing is done before it is done.
func Percent(part, whole int64) int {
	if whole <= 0 || part <= 0 {
		return 0
	}
	if part >= whole {
		return 100
	}
	return int(float64(part) / float64(whole) * 100)
}

// Count writes a whole number with thousands separated: 250,002.
func Count(n int64) string {
	s := strconv.FormatInt(n, 10)
	sign := ""
	if n < 0 {
		sign, s = "−", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

// Big writes a large number short: 568 M, 8.2 B (billion).
func Big(n int64) string {
	f, unit := float64(n), ""
	switch {
	case n >= 1e9:
		f, unit = f/1e9, " B"
	case n >= 1e6:
		f, unit = f/1e6, " M"
	case n >= 1e3:
		f, unit = f/1e3, " k"
	default:
		return strconv.FormatInt(n, 10)
	}
	if f < 10 {
		return strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0") + unit
	}
	return strconv.FormatFloat(f, 'f', 0, 64) + unit
}

// Duration writes how long something took or lasts: 0.4 s, 9 s, 4 min, 1 h 20 min, 3 days.
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return None
	case d < 10*time.Millisecond:
		return "0 s"
	case d < 9950*time.Millisecond:
		return strings.TrimSuffix(strconv.FormatFloat(d.Seconds(), 'f', 1, 64), ".0") + " s"
	case d < time.Minute:
		return strconv.Itoa(int(d.Round(time.Second).Seconds())) + " s"
	case d < time.Hour:
		m, s := int(d.Minutes()), int(d.Seconds())%60
		if m < 5 && s > 0 {
			return fmt.Sprintf("%d min %d s", m, s)
		}
		return fmt.Sprintf("%d min", m)
	case d < 48*time.Hour:
		h, m := int(d.Hours()), int(d.Minutes())%60
		if m == 0 || h >= 10 {
			return fmt.Sprintf("%d h", h)
		}
		return fmt.Sprintf("%d h %d min", h, m)
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// Ago writes how long before now t was: now, 40 s ago, 4 min ago, 3 days ago, 2 Jan 2026. None for the zero time.
func Ago(t, now time.Time) string {
	if t.IsZero() {
		return None
	}
	d := now.Sub(t)
	switch {
	case d < 5*time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 24*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	case d < 48*time.Hour:
		return "yesterday"
	case d < 30*24*time.Hour:
		return fmt.Sprintf("%d days ago", int(d.Hours()/24))
	}
	return t.Format("2 Jan 2006")
}

// Clock writes the time of day for today, and the date before that.
func Clock(t, now time.Time) string {
	if t.IsZero() {
		return None
	}
	if y, m, d := now.Date(); t.Year() == y && t.Month() == m && t.Day() == d {
		return t.Format("15:04")
	}
	if now.Sub(t) < 300*24*time.Hour {
		return t.Format("2 Jan")
	}
	return t.Format("Jan 2006")
}

// Rate writes units per second.
func Rate(perSecond float64, bytes bool) string {
	if perSecond <= 0 || math.IsInf(perSecond, 0) || math.IsNaN(perSecond) {
		return ""
	}
	if bytes {
		return Bytes(int64(perSecond)) + "/s"
	}
	return strconv.FormatFloat(perSecond, 'f', 0, 64) + "/s"
}

// Plural writes a count and its noun: 1 model, 2 models.
func Plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return Count(int64(n)) + " " + many
}

// DeviceName writes a device for people: cuda:0 is GPU 0, cpu is CPU.
func DeviceName(d string) string {
	switch {
	case d == "":
		return None
	case d == "cpu":
		return "CPU"
	case d == "cuda":
		return "GPU"
	case strings.HasPrefix(d, "cuda:"):
		ids := strings.Split(strings.TrimPrefix(d, "cuda:"), ",")
		if len(ids) > 1 {
			return "GPUs " + strings.Join(ids, ", ")
		}
		return "GPU " + ids[0]
	}
	return d
}
