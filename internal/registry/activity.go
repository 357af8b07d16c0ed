package registry

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Activity is what an engine says of the work it does. No engine tells all of it: what is nil is not known.
type Activity struct {
	At time.Time `json:"at"` // when it was asked

	Running    *int64   `json:"running,omitempty"`      // requests that are being answered
	Waiting    *int64   `json:"waiting,omitempty"`      // requests that it has taken and not begun
	KVCacheUse *float64 `json:"kv_cache_use,omitempty"` // share of the cache of keys and values that is taken, 0 to 1

	// Since the engine was started, its own first requests included.
	PromptTokens       *int64   `json:"prompt_tokens,omitempty"`
	GeneratedTokens    *int64   `json:"generated_tokens,omitempty"`
	Preemptions        *int64   `json:"preemptions,omitempty"`          // requests that gave their cache up for others and begin again
	FirstTokenSeconds  *float64 `json:"first_token_seconds,omitempty"`  // until the first token of an answer, on average
	WholeAnswerSeconds *float64 `json:"whole_answer_seconds,omitempty"` // until its last, on average

	TokensPerSecond *float64 `json:"tokens_per_second,omitempty"` // generated since it was asked the time before
}

// Since returns a with TokensPerSecond, from what the same engine said before; nil where that cannot be known.
func (a Activity) Since(before *Activity) Activity {
	a.TokensPerSecond = nil
	if before == nil || before.GeneratedTokens == nil || a.GeneratedTokens == nil {
		return a
	}
	took, more := a.At.Sub(before.At).Seconds(), *a.GeneratedTokens-*before.GeneratedTokens
	if took > 0 && more >= 0 {
		rate := float64(more) / took
		a.TokensPerSecond = &rate
	}
	return a
}

// Requests is the work at this moment as text: "2 requests running, 1 waiting"; "" if nothing is known.
func (a Activity) Requests() string {
	var parts []string
	if n := a.Running; n != nil {
		parts = append(parts, plural(*n, "request", "requests")+" running")
	}
	if n := a.Waiting; n != nil {
		parts = append(parts, thousands(*n)+" waiting")
	}
	return strings.Join(parts, ", ")
}

// Cache is how full the cache is as text: "12% full, 3 preemptions"; "" if nothing is known.
func (a Activity) Cache() string {
	var parts []string
	if u := a.KVCacheUse; u != nil {
		parts = append(parts, fmt.Sprintf("%.3g%% full", 100**u))
	}
	if n := a.Preemptions; n != nil && *n > 0 {
		parts = append(parts, plural(*n, "preemption", "preemptions"))
	}
	return strings.Join(parts, ", ")
}

// Tokens is what was read and written as text: "1,024 read, 2,048 written, 34.1 a second now"; "" if nothing is known.
func (a Activity) Tokens() string {
	var parts []string
	if n := a.PromptTokens; n != nil {
		parts = append(parts, thousands(*n)+" read")
	}
	if n := a.GeneratedTokens; n != nil {
		parts = append(parts, thousands(*n)+" written")
	}
	if r := a.TokensPerSecond; r != nil && *r > 0 {
		parts = append(parts, fmt.Sprintf("%.1f a second now", *r))
	}
	return strings.Join(parts, ", ")
}

// Waits is how long answers take, as text: "first token after 210ms, whole answer after 1.2s"; "" if nothing is known.
func (a Activity) Waits() string {
	var parts []string
	for _, w := range []struct {
		what string
		s    *float64
	}{{"first token", a.FirstTokenSeconds}, {"whole answer", a.WholeAnswerSeconds}} {
		if w.s != nil {
			d := time.Duration(*w.s * float64(time.Second))
			parts = append(parts, fmt.Sprintf("%s after %s", w.what, d.Round(max(time.Millisecond, d.Round(time.Second)/100))))
		}
	}
	return strings.Join(parts, ", ")
}

func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return thousands(n) + " " + many
}

// thousands groups the digits of a count: 12,345.
func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
