package process

import (
	"fmt"
	"net"
	"sync"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// ports are the TCP ports of 127.0.0.1 that this program has given to engines. It is one set for all loaders because
// the machine has one set of ports.
var ports = struct {
	sync.Mutex
	taken map[int]bool
}{taken: map[int]bool{}}

// Port is a port of 127.0.0.1 that is an engine's own until it is released.
type Port struct {
	Number int
	once   sync.Once
}

// ReservePort finds a free port that no other engine of ours has been given, even if that one does not listen yet. A
// stranger can still take it before the engine does: the loader then takes another.
func ReservePort() (*Port, error) {
	ports.Lock()
	defer ports.Unlock()
	var held []net.Listener // keep refused ones open, so that the kernel offers another
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	for range 64 {
		l, err := net.Listen("tcp4", "127.0.0.1:0") //nolint:noctx // it does not wait
		if err != nil {
			return nil, &registry.Error{Code: registry.CodeUnavailable, Op: "process.ReservePort", Msg: fmt.Sprintf("No free port on 127.0.0.1 for an engine: %v", err), Err: err}
		}
		held = append(held, l)
		addr, ok := l.Addr().(*net.TCPAddr)
		if ok && !ports.taken[addr.Port] {
			ports.taken[addr.Port] = true
			return &Port{Number: addr.Port}, nil
		}
	}
	return nil, &registry.Error{Code: registry.CodeUnavailable, Op: "process.ReservePort", Msg: "No free port on 127.0.0.1 for an engine; unload a model first"}
}

// ClaimPort marks the port of a re-attached engine as taken.
func ClaimPort(n int) *Port {
	ports.Lock()
	defer ports.Unlock()
	ports.taken[n] = true
	return &Port{Number: n}
}

// Release gives the port back. It may be called more than once.
func (p *Port) Release() {
	p.once.Do(func() {
		ports.Lock()
		defer ports.Unlock()
		delete(ports.taken, p.Number)
	})
}
