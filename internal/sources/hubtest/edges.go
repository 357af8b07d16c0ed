package hubtest

import (
	"context"
	"net"
	"sync"
	"time"
)

// edges gives each connection of the second host the rate that it is capped to.
type edges struct {
	mu    sync.Mutex
	rates []int64
	given int
}

// Edges sets the rates, in bytes per second, that connections from now on are capped to, in turn; 0 is uncapped.
func (h *Hub) Edges(rates ...int64) { h.edges.set(rates) }

func (e *edges) set(rates []int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rates, e.given = rates, 0
}

// next returns the edge of a new connection, nil for an uncapped one.
func (e *edges) next(c net.Conn) *edge {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.rates) == 0 {
		return nil
	}
	rate := e.rates[e.given%len(e.rates)]
	e.given++
	if rate <= 0 {
		return nil
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		// A large buffer would let the first megabytes through at once. A refused size only makes that so.
		_ = tcp.SetWriteBuffer(64 << 10)
	}
	return &edge{rate: rate}
}

// edge paces what goes out on one connection.
type edge struct {
	rate int64
	mu   sync.Mutex
	free time.Time // when the bytes so far have gone out
}

// slice is how many bytes go out at once: a fiftieth of a second's.
func (e *edge) slice() int64 { return max(4<<10, e.rate/50) }

// pass returns when n further bytes may go out.
func (e *edge) pass(ctx context.Context, n int64) error {
	e.mu.Lock()
	now := time.Now()
	if e.free.Before(now) {
		e.free = now
	}
	wait := e.free.Sub(now)
	e.free = e.free.Add(time.Duration(float64(n) / float64(e.rate) * float64(time.Second)))
	e.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
