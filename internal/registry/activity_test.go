package registry

import (
	"testing"
	"time"
)

func of[T any](v T) *T { return &v }

func TestActivityInWords(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		a    Activity
		want [4]string
	}{
		"nothing known": {Activity{}, [4]string{}},
		"idle":          {Activity{Running: of(int64(0)), Waiting: of(int64(0)), KVCacheUse: of(0.0), Preemptions: of(int64(0)), GeneratedTokens: of(int64(1)), TokensPerSecond: of(0.0)}, [4]string{"0 requests running, 0 waiting", "0% full", "1 written", ""}},
		"busy": {
			Activity{Running: of(int64(1)), Waiting: of(int64(1200)), KVCacheUse: of(0.1234), Preemptions: of(int64(3)), PromptTokens: of(int64(1234567)), GeneratedTokens: of(int64(2048)),
				TokensPerSecond: of(34.06), FirstTokenSeconds: of(0.0421), WholeAnswerSeconds: of(12.3456)},
			[4]string{"1 request running, 1,200 waiting", "12.3% full, 3 preemptions", "1,234,567 read, 2,048 written, 34.1 a second now", "first token after 42ms, whole answer after 12.36s"},
		},
	} {
		if got := [4]string{tt.a.Requests(), tt.a.Cache(), tt.a.Tokens(), tt.a.Waits()}; got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestActivitySince(t *testing.T) {
	t.Parallel()
	start := time.Now()
	then := &Activity{At: start, GeneratedTokens: of(int64(100))}
	for name, tt := range map[string]struct {
		before *Activity
		now    Activity
		want   *float64
	}{
		"half a minute later":    {then, Activity{At: start.Add(30 * time.Second), GeneratedTokens: of(int64(400))}, of(10.0)},
		"nothing since":          {then, Activity{At: start.Add(time.Second), GeneratedTokens: of(int64(100))}, of(0.0)},
		"the first time":         {nil, Activity{At: start, GeneratedTokens: of(int64(400)), TokensPerSecond: of(1.0)}, nil},
		"it was not told before": {&Activity{At: start}, Activity{At: start.Add(time.Second), GeneratedTokens: of(int64(400))}, nil},
		"it is not told":         {then, Activity{At: start.Add(time.Second)}, nil},
		"it counts from anew":    {then, Activity{At: start.Add(time.Second), GeneratedTokens: of(int64(5))}, nil},
		"the clock was set back": {then, Activity{At: start.Add(-time.Second), GeneratedTokens: of(int64(400))}, nil},
	} {
		got := tt.now.Since(tt.before).TokensPerSecond
		if (got == nil) != (tt.want == nil) || got != nil && *got != *tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
