package fetch

import (
	"slices"
	"time"
)

// pace finds how many connections a fetch should have. A fixed number is wrong everywhere: where one connection is capped
// many are needed, where the path is full more only get in each other's way, and a server that says "slower" means it.
// So it climbs: a few at first, twice as many while that pays, then it tries a few more or fewer now and then.
//
// It is a pure function of what it is told, and knows no clock.
type pace struct {
	limit  int // most connections
	target int // that there should be now

	phase   phase
	from    int     // the target before the trial
	base    float64 // work per second at from
	down    bool    // the next trial is of fewer
	hold    time.Duration
	settled time.Time // when the measurement begins; connections need time to gain speed
	until   time.Time // when it ends, or when holding does
	work    int64     // when it began
	began   time.Time
	short   bool // there were fewer connections than there should be, so it proves nothing
	eased   time.Time
	ceiling int // until eased, after the other side asked for less
}

type phase int

const (
	phaseBase  phase = iota // measuring what the target gives
	phaseTrial              // measuring what another target gives
	phaseHold               // waiting for the next trial
)

const (
	firstConnections = 4
	shortHold        = 4 * time.Second
	longHold         = time.Minute
	easedFor         = 30 * time.Second
	// requestWork is what a request counts beside its bytes, so that for small files requests per second decide.
	requestWork = 256 << 10
)

func newPace(limit int, now time.Time) *pace {
	p := &pace{limit: limit, target: min(firstConnections, limit), hold: shortHold}
	p.measure(phaseBase, now, 0, 0)
	return p
}

// measure begins a measurement.
func (p *pace) measure(ph phase, now time.Time, work int64, latency time.Duration) {
	settle := min(max(2*latency, 100*time.Millisecond), 1500*time.Millisecond)
	p.phase, p.settled, p.until = ph, now.Add(settle), now.Add(settle+max(300*time.Millisecond, 2*settle))
	p.work, p.began, p.short = work, now, false
}

// tick is told several times a second how much work was done since the beginning, how many connections there are, and
// how long an answer usually takes to begin.
func (p *pace) tick(now time.Time, work int64, connections int, latency time.Duration) {
	if p.ceiling > 0 && now.After(p.eased) {
		p.ceiling = 0
	}
	if p.phase != phaseHold && connections < p.target {
		p.short = true
	}
	if p.phase != phaseHold && now.Before(p.settled) {
		p.work, p.began = work, now
		return
	}
	if now.Before(p.until) {
		return
	}
	if p.phase == phaseHold {
		p.measure(phaseBase, now, work, latency)
		return
	}
	score := float64(work-p.work) / max(now.Sub(p.began).Seconds(), 1e-9)
	switch {
	case p.short:
		// Too little to do, or a pause: neither speaks for or against the target.
		p.measure(p.phase, now, work, latency)
	case p.phase == phaseBase:
		p.base = score
		p.try(now, work, latency)
	default:
		p.judge(score, now, work, latency)
	}
}

// try begins the next trial from a base that was just measured.
func (p *pace) try(now time.Time, work int64, latency time.Duration) {
	p.from = p.target
	next := p.step()
	if next == p.target {
		p.down = !p.down
		next = p.step()
	}
	if next == p.target {
		p.rest(now)
		return
	}
	p.target = next
	p.measure(phaseTrial, now, work, latency)
}

func (p *pace) step() int {
	most := p.limit
	if p.ceiling > 0 {
		most = min(most, p.ceiling)
	}
	switch {
	case p.down:
		return max(1, p.target-max(1, p.target/4))
	case p.hold == shortHold && p.target < 32:
		return min(max(most, 1), 2*p.target)
	}
	return min(max(most, 1), p.target+max(1, p.target/4))
}

func (p *pace) judge(score float64, now time.Time, work int64, latency time.Duration) {
	ratio := float64(p.target) / float64(p.from)
	// More must bring a third of what it would if each connection brought the same; fewer must cost next to nothing.
	enough := score >= p.base*(1+(ratio-1)/3)
	if p.down {
		enough = score >= p.base*0.98
	}
	if enough {
		p.base = score
		p.try(now, work, latency)
		return
	}
	p.target = p.from
	// What did not pay is not tried again soon; the other direction is.
	p.down = !p.down
	p.rest(now)
}

func (p *pace) rest(now time.Time) {
	p.phase, p.until = phaseHold, now.Add(p.hold)
	p.hold = min(p.hold*3/2, longHold)
}

// slower halves the target: the other side said that it is overloaded. Several such answers at once count as one.
func (p *pace) slower(now time.Time) {
	if p.ceiling > 0 && now.Before(p.eased.Add(-easedFor+time.Second)) {
		return
	}
	p.target = max(1, p.target/2)
	p.ceiling, p.eased = p.target, now.Add(easedFor)
	p.down = false
	p.hold = max(p.hold, 10*time.Second)
	p.phase, p.until = phaseHold, now.Add(10*time.Second)
}

// A connection is slow when it has less than slowShare of what the others usually have, for slowAfter.
const (
	slowShare = 0.35
	slowAfter = 2 * time.Second
)

// median returns the middle of the rates, 0 of none.
func median(rates []float64) float64 {
	if len(rates) == 0 {
		return 0
	}
	sorted := slices.Clone(rates)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}
