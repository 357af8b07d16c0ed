package fetch

import (
	"context"
	"time"

	"golang.org/x/time/rate"
)

// The burst of a limit is a tenth of a second's bytes within these bounds: small enough that a change of the limit is
// felt soon, large enough that reads stay worth their system call.
const (
	minBurst = 16 << 10
	maxBurst = 1 << 20
)

// setLimit changes a limiter to bytesPerSecond; 0 and below is no limit.
func setLimit(l *rate.Limiter, bytesPerSecond int64) {
	if bytesPerSecond <= 0 {
		l.SetLimit(rate.Inf)
		return
	}
	l.SetBurst(burst(bytesPerSecond))
	l.SetLimit(rate.Limit(bytesPerSecond))
}

func newLimit(bytesPerSecond int64) *rate.Limiter {
	l := rate.NewLimiter(rate.Inf, maxBurst)
	setLimit(l, bytesPerSecond)
	return l
}

func burst(bytesPerSecond int64) int { return int(min(max(bytesPerSecond/10, minBurst), maxBurst)) }

// gate is the limits that apply to one fetch: all of them.
type gate []*rate.Limiter

// most returns how many of n bytes may be read at once.
func (g gate) most(n int) int {
	for _, l := range g {
		if l.Limit() != rate.Inf {
			n = min(n, l.Burst())
		}
	}
	return n
}

// wait takes n bytes that were read out of each limit, and returns when the next may be read. A limit may change
// meanwhile, so n is taken in pieces that fit.
func (g gate) wait(ctx context.Context, n int) error {
	for _, l := range g {
		for left := n; left > 0 && l.Limit() != rate.Inf; {
			piece := min(left, l.Burst())
			r := l.ReserveN(time.Now(), piece)
			if !r.OK() {
				continue // the burst shrank between the two calls
			}
			if err := sleep(ctx, r.Delay()); err != nil {
				r.Cancel()
				return err
			}
			left -= piece
		}
	}
	return nil
}
