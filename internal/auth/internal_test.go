package auth

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// CheapHashes makes hashing a matter of microseconds, for tests of everything else. Call it before Bootstrap.
func (s *Service) CheapHashes() { s.hasher = newHasher(64) }

func TestPasswordHash(t *testing.T) {
	h := newHasher(argonMemoryKiB)
	a, err := h.hash(t.Context(), "a pass phrase")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := h.hash(t.Context(), "a pass phrase")
	if a == b || !strings.HasPrefix(a, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("%s, %s", a, b)
	}
	for pw, want := range map[string]bool{"a pass phrase": true, "A pass phrase": false, "": false, "a pass phrase\x00": false} {
		if ok, err := h.verify(t.Context(), a, pw); ok != want || err != nil {
			t.Errorf("%q: %v %v", pw, ok, err)
		}
	}
	// Neither an empty hash nor the dummy has a password.
	for _, pw := range []string{"", "x"} {
		if ok, err := h.verify(t.Context(), "", pw); ok || err != nil {
			t.Errorf("%v %v", ok, err)
		}
	}
	// The parameters are the hash's own: those made at another cost still verify.
	other, _ := newHasher(64).hash(t.Context(), "a pass phrase")
	if ok, err := h.verify(t.Context(), other, "a pass phrase"); !ok || err != nil {
		t.Errorf("%s: %v %v", other, ok, err)
	}
}

func TestHashesThatCannotBe(t *testing.T) {
	h := newHasher(argonMemoryKiB)
	good := h.dummy
	for _, bad := range []string{
		"x", "$argon2id$", strings.Replace(good, "argon2id", "argon2i", 1), strings.Replace(good, "v=19", "v=16", 1),
		strings.Replace(good, "m=19456", "m=4294967295", 1), strings.Replace(good, "t=2", "t=4000000000", 1),
		strings.Replace(good, "p=1", "p=0", 1), strings.Replace(good, "t=2", "t=0", 1), good[:len(good)-30], good + "$",
	} {
		ok, err := h.verify(t.Context(), bad, "x")
		if ok || registry.CodeOf(err) != registry.CodeInternal {
			t.Errorf("%s: %v %v", bad, ok, err)
		}
	}
}

func TestHashersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHasher(64)
		done, err := h.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		results := make(chan error, maxHashWaiters)
		for range maxHashWaiters {
			go func() {
				_, err := h.verify(ctx, "", "x")
				results <- err
			}()
		}
		synctest.Wait() // all of them wait for their turn
		_, err = h.hash(t.Context(), "x")
		if e := registry.AsError(err); e.Code != registry.CodeBusy || e.RetryAfter == 0 {
			t.Errorf("one too many: %v", err)
		}
		cancel() // those who went away do not hash
		for range maxHashWaiters {
			if err := <-results; registry.CodeOf(err) != registry.CodeTimeout {
				t.Errorf("%v", err)
			}
		}
		done()
		if _, err := h.hash(t.Context(), "x"); err != nil {
			t.Error(err)
		}
	})
}

func TestTokenForm(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		s := newTokenSecret()
		if !ours(s) || !possibleToken(s) || seen[s] {
			t.Fatalf("%q", s)
		}
		seen[s] = true
		for i := len(tokenPrefix); i < len(s); i++ {
			c := byte('a')
			if s[i] == 'a' {
				c = 'b'
			}
			if typo := s[:i] + string(c) + s[i+1:]; ours(typo) {
				t.Errorf("%q passes for %q", typo, s)
			}
		}
	}
}

func TestLimiterIsBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := newLimiter(func() time.Time { return now })
	for i := range 3 * limiterKeys {
		_ = l.attempt(fmt.Sprintf("u%d", i), fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))
	}
	if len(l.byKey) > limiterKeys || l.order.Len() != len(l.byKey) {
		t.Errorf("%d keys, %d in order", len(l.byKey), l.order.Len())
	}
}

func TestCacheIsBoundedAndDropsStale(t *testing.T) {
	now := time.Unix(1e9, 0)
	c := newCache(func() time.Time { return now })
	for i := range 2 * cacheKeys {
		id := fmt.Sprint(i)
		c.putAccount(account{user: registry.User{ID: id}}, c.gen)
		c.putToken(tokenHash(id), registry.Token{ID: id}, c.gen)
		c.shouldTouch(registry.Token{ID: id})
	}
	if len(c.accounts) > cacheKeys || len(c.tokens) > cacheKeys || len(c.touched) > cacheKeys {
		t.Errorf("%d %d %d", len(c.accounts), len(c.tokens), len(c.touched))
	}
	_, _, gen := c.account("new")
	c.invalidate() // somebody changes the account while it is being read
	c.putAccount(account{user: registry.User{ID: "new"}}, gen)
	if _, ok, _ := c.account("new"); ok {
		t.Error("what was read before the change was kept")
	}
	c.putAccount(account{user: registry.User{ID: "new"}}, c.gen)
	now = now.Add(cacheTTL)
	if _, ok, _ := c.account("new"); ok {
		t.Error("believed for longer than the TTL")
	}
}

func FuzzBearer(f *testing.F) {
	for _, s := range []string{"", "Bearer ", "bearer x", "Basic YTpi", "Bearer " + newTokenSecret(), "Bearer llmm_", "Bearer\t" + strings.Repeat("a", 600), "Bearer a b c d e f g h i j k l"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := bearer(&http.Request{Header: http.Header{"Authorization": {s}}})
		switch {
		case err != nil:
			if registry.CodeOf(err) != registry.CodeUnauthenticated || got != "" {
				t.Errorf("%q %v", got, err)
			}
			if len(s) > 40 && strings.Contains(err.Error(), s) {
				t.Errorf("%v quotes the header", err)
			}
		case got != "":
			if !possibleToken(got) || !strings.Contains(s, got) {
				t.Errorf("%q from %q", got, s)
			}
			_ = displayPrefix(got)
			if ours(got) && len(displayPrefix(got)) != 11 {
				t.Errorf("prefix %q", displayPrefix(got))
			}
		}
	})
}

func FuzzParseHash(f *testing.F) {
	f.Add(newHasher(argonMemoryKiB).dummy)
	f.Add("$argon2id$v=19$m=1,t=1,p=1$$")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseHash(s)
		if err == nil && (p.memory > 256*1024 || p.time > 16 || p.threads == 0) {
			t.Errorf("%+v", p)
		}
	})
}
