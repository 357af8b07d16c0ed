package auth

import (
	"crypto/sha256"
	"sync"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// How long what was read of accounts and tokens is believed. Changes made through this process end it at once; the
// time is for changes made behind its back, by another process on the same database.
const (
	cacheTTL  = 10 * time.Second
	cacheKeys = 4096
)

// account is what a request needs to know of its caller.
type account struct {
	user  registry.User
	roles map[string]registry.Role
}

// cache keeps accounts and tokens between requests, so that the gateway does not ask the database each time. What
// was read before a change must not be put in after it: each read takes the generation first, and put drops what
// is of an older one.
type cache struct {
	now func() time.Time

	mu       sync.Mutex
	gen      uint64
	accounts map[string]cached[account]
	tokens   map[[sha256.Size]byte]cached[registry.Token]
	touched  map[string]time.Time // by token id: when its last use was stored
}

type cached[T any] struct {
	value T
	until time.Time
}

func newCache(now func() time.Time) *cache {
	c := &cache{now: now, touched: map[string]time.Time{}}
	c.invalidate()
	return c
}

// invalidate forgets everything. Changes to accounts, members and tokens are rare and the whole is read again in a few
// milliseconds, so there is nothing finer to get wrong.
func (c *cache) invalidate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen++
	c.accounts = map[string]cached[account]{}
	c.tokens = map[[sha256.Size]byte]cached[registry.Token]{}
}

// account returns the cached account, and the generation to hand to putAccount if there is none.
func (c *cache) account(id string) (account, bool, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.accounts[id]
	return e.value, ok && c.now().Before(e.until), c.gen
}

func (c *cache) putAccount(a account, gen uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if gen == c.gen {
		bound(c.accounts)
		c.accounts[a.user.ID] = cached[account]{a, c.now().Add(cacheTTL)}
	}
}

// token returns the cached token, and the generation to hand to putToken if there is none.
func (c *cache) token(hash [sha256.Size]byte) (registry.Token, bool, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.tokens[hash]
	return e.value, ok && c.now().Before(e.until), c.gen
}

func (c *cache) putToken(hash [sha256.Size]byte, t registry.Token, gen uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if gen == c.gen {
		bound(c.tokens)
		c.tokens[hash] = cached[registry.Token]{t, c.now().Add(cacheTTL)}
	}
}

// shouldTouch reports, once a minute for each token, that its last use should be stored.
func (c *cache) shouldTouch(t registry.Token) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	last := c.touched[t.ID]
	if t.LastUsedAt.After(last) {
		last = t.LastUsedAt
	}
	if now.Sub(last) < time.Minute {
		return false
	}
	bound(c.touched)
	c.touched[t.ID] = now
	return true
}

// bound makes room in a full map by dropping what comes first, which in Go is any: good enough for a cache that lives
// ten seconds, and no list to keep.
func bound[K comparable, V any](m map[K]V) {
	for k := range m {
		if len(m) < cacheKeys {
			return
		}
		delete(m, k)
	}
}
