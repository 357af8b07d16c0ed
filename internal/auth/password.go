package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Limits on passwords, in characters. There are no rules on which characters: length is what helps.
const (
	MinPassword = 10
	MaxPassword = 256
)

// The cost of a password: OWASP's second choice for argon2id. It is written into each hash, so that it can be raised
// later without ending the old ones.
const (
	argonMemoryKiB = 19 * 1024
	argonTime      = 2
	argonThreads   = 1
	argonSalt      = 16
	argonKey       = 32
)

// hasher computes password hashes one at a time: each takes 19 MiB, and a crowd that signs in at once (or a flood of
// guesses) must not multiply that. Waiters are bounded too; more are told to come back.
type hasher struct {
	memoryKiB uint32
	turn      chan struct{}
	waiting   atomic.Int32
	dummy     string
}

const maxHashWaiters = 64

func newHasher(memoryKiB uint32) *hasher {
	h := &hasher{memoryKiB: memoryKiB, turn: make(chan struct{}, 1)}
	// Checked when there is no such account, so that the answer takes as long as for a real one.
	h.dummy = h.encode(make([]byte, argonSalt), make([]byte, argonKey))
	return h
}

func (h *hasher) acquire(ctx context.Context) (func(), error) {
	if h.waiting.Add(1) > maxHashWaiters {
		h.waiting.Add(-1)
		return nil, &registry.Error{Code: registry.CodeBusy, Msg: "too many people are signing in at this moment; try again in a few seconds", RetryAfter: 3 * time.Second}
	}
	defer h.waiting.Add(-1)
	select {
	case h.turn <- struct{}{}:
		return func() { <-h.turn }, nil
	case <-ctx.Done():
		return nil, &registry.Error{Code: registry.CodeTimeout, Msg: "the request ended before the password was checked", Err: ctx.Err()}
	}
}

// hash returns the encoded hash of a new password.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	done, err := h.acquire(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	salt := make([]byte, argonSalt)
	_, _ = rand.Read(salt) // never fails: crypto/rand ends the program rather than returning an error
	return h.encode(salt, argon2.IDKey([]byte(password), salt, argonTime, h.memoryKiB, argonThreads, argonKey)), nil
}

// verify reports whether password is the one that was hashed. An empty hash (an account without a password) costs as
// much as any other and never matches.
func (h *hasher) verify(ctx context.Context, encoded, password string) (bool, error) {
	usable := encoded != ""
	if !usable {
		encoded = h.dummy
	}
	p, err := parseHash(encoded)
	if err != nil {
		return false, err
	}
	done, err := h.acquire(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	key := argon2.IDKey([]byte(password), p.salt, p.time, p.memory, p.threads, uint32(len(p.key))) // parseHash bounds the length
	same := subtle.ConstantTimeCompare(key, p.key) == 1
	return same && usable, nil
}

func (h *hasher) encode(salt, key []byte) string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.memoryKiB, argonTime, argonThreads,
		b64.EncodeToString(salt), b64.EncodeToString(key))
}

type hashParams struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

func parseHash(encoded string) (hashParams, error) {
	bad := func() (hashParams, error) {
		return hashParams{}, registry.Errorf(registry.CodeInternal, "the stored password of this account cannot be read; an admin can set a new one")
	}
	parts := strings.Split(encoded, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return bad()
	}
	var p hashParams
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &p.memory, &p.time, &p.threads); n != 3 || err != nil {
		return bad()
	}
	var err1, err2 error
	p.salt, err1 = base64.RawStdEncoding.DecodeString(parts[4])
	p.key, err2 = base64.RawStdEncoding.DecodeString(parts[5])
	// A row that asks for gigabytes or an hour would be a way to stop the server.
	if err1 != nil || err2 != nil || p.memory < 8 || p.memory > 256*1024 || p.time < 1 || p.time > 16 || p.threads < 1 ||
		len(p.salt) < 8 || len(p.salt) > 64 || len(p.key) < 16 || len(p.key) > 64 {
		return bad()
	}
	return p, nil
}

// checkPassword returns CodeInvalid, naming field, for a password that does not do.
func checkPassword(field, name, password string) error {
	var msg string
	switch n := utf8.RuneCountInString(password); {
	case password == "":
		msg = "is required"
	case !utf8.ValidString(password):
		msg = "must be valid UTF-8"
	case n < MinPassword:
		msg = fmt.Sprintf("must have at least %d characters", MinPassword)
	case n > MaxPassword:
		msg = fmt.Sprintf("must have at most %d characters", MaxPassword)
	case name != "" && strings.EqualFold(strings.TrimSpace(password), name):
		msg = "must not be the account's name"
	default:
		return nil
	}
	return invalid("this password cannot be used", field, msg)
}

func invalid(what, field, msg string) error {
	return &registry.Error{Code: registry.CodeInvalid, Msg: what, Fields: []registry.FieldError{{Field: field, Msg: msg}}}
}

// epoch ties a session to the password it was made with: when the password changes, sessions made before end. It
// tells nothing about the password, being a hash of a salted hash.
func epoch(u registry.User) string {
	sum := sha256.Sum256([]byte("session epoch\x00" + u.ID + "\x00" + u.PasswordHash))
	return hex.EncodeToString(sum[:12])
}
