package registry

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes writes a number of bytes in binary units: 512 MiB, 9.6 GiB, 128 GiB. Memory, files and rates are all told in
// these, because devices are sized in them and the guide's required_*_mb are MiB too; one unit everywhere means
// that numbers on a page add up. Below 10 there is one decimal, unless it is .0.
func Bytes(n int64) string {
	sign := ""
	if n < 0 {
		sign, n = "−", -n
	}
	if n < 1024 {
		return fmt.Sprintf("%s%d B", sign, n)
	}
	f := float64(n)
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for f >= 1023.5 && i < len(units)-1 {
		f /= 1024
		i++
	}
	// A GiB and more keeps a decimal up to 100, as people plan with them; smaller units do not need it.
	limit := 10.0
	if i >= 3 {
		limit = 100
	}
	if f < limit-0.05 {
		return sign + strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0") + " " + units[i]
	}
	return sign + strconv.FormatFloat(math.Round(f), 'f', 0, 64) + " " + units[i]
}
