package auth

import (
	"container/list"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// How often somebody may try to sign in. Per account and address it is for guessing one password, per address for
// trying one password on many accounts. A success gives the first one back.
const (
	accountBurst = 5
	accountEvery = 12 * time.Second
	remoteBurst  = 30
	remoteEvery  = 2 * time.Second
	limiterKeys  = 8192 // entries kept; the least recently used goes first
)

// limiter counts attempts in bounded memory.
type limiter struct {
	now func() time.Time

	mu    sync.Mutex
	byKey map[string]*list.Element
	order *list.List // front: most recently used
}

type limiterEntry struct {
	key string
	lim *rate.Limiter
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, byKey: map[string]*list.Element{}, order: list.New()}
}

// attempt takes one try for the account from the remote. CodeBusy with RetryAfter when there are none left; a
// refused try takes nothing.
func (l *limiter) attempt(account, remote string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	remote = network(remote)
	wait := l.take("r "+remote, remoteEvery, remoteBurst, now)
	if wait == 0 {
		wait = l.take(accountKey(account, remote), accountEvery, accountBurst, now)
	}
	if wait == 0 {
		return nil
	}
	secs := time.Duration(math.Ceil(wait.Seconds())) * time.Second
	return &registry.Error{
		Code: registry.CodeBusy, RetryAfter: secs,
		Msg: fmt.Sprintf("too many attempts to sign in; try again in %s", registry.Duration(secs)),
	}
}

// succeeded forgets the account's failed tries from the remote.
func (l *limiter) succeeded(account, remote string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := accountKey(account, network(remote))
	if e, ok := l.byKey[key]; ok {
		l.order.Remove(e)
		delete(l.byKey, key)
	}
}

func (l *limiter) take(key string, every time.Duration, burst int, now time.Time) time.Duration {
	e, ok := l.byKey[key]
	if ok {
		l.order.MoveToFront(e)
	} else {
		if l.order.Len() >= limiterKeys {
			oldest := l.order.Back()
			if old, is := oldest.Value.(*limiterEntry); is {
				delete(l.byKey, old.key)
			}
			l.order.Remove(oldest)
		}
		e = l.order.PushFront(&limiterEntry{key: key, lim: rate.NewLimiter(rate.Every(every), burst)})
		l.byKey[key] = e
	}
	entry, is := e.Value.(*limiterEntry)
	if !is {
		return every
	}
	r := entry.lim.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

func accountKey(account, network string) string { return "a " + network + " " + account }

// network is what counts as one remote: an IPv4 address, or the /64 that one IPv6 host can choose from at will.
func network(remote string) string {
	addr, err := netip.ParseAddr(remote)
	if err != nil {
		return remote
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is4() {
		return addr.String()
	}
	p, err := addr.Prefix(64)
	if err != nil {
		return addr.String()
	}
	return p.String()
}
