package events_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// entry is one thing that was published or sampled, as the model of the bus remembers it: all of them, for ever.
type entry struct {
	key string
	n   int
	seq uint64 // 0: a sample
}

// reader is what the model knows of one subscription.
type reader struct {
	s    *events.Subscription
	only string // subject it is narrowed to; "" all
	from int    // index into the log of the first entry that it has not been given or told to forget
	last string // id of the last message that had one
}

// TestAgainstModel holds the bus to a model that forgets nothing: order for each subscriber, nothing twice, no gap
// without a reset, a reset only for who is behind the log's end, and the newest of each sample in the end.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const replay = 6
		b := events.New(events.Options{Replay: replay, Queue: rapid.IntRange(1, 4).Draw(t, "queue")})
		var log []entry
		var seq uint64
		var readers []*reader
		subjects := rapid.SampledFrom([]string{"a", "b", "c"})

		// check reads all there is and compares it with the model.
		check := func(r *reader) {
			published := 0
			for _, e := range log[r.from:] {
				if e.seq > 0 {
					published++
				}
			}
			newest := map[string]int{}
			place := r.from
			reset := false
			for _, m := range now(t, r.s) {
				if m.ID() != "" {
					r.last = m.ID()
				}
				if m.Kind == registry.EventReset {
					if published <= replay {
						t.Fatalf("a reset for a reader who is only %d events behind", published)
					}
					if m.Seq != seq {
						t.Fatalf("the reset is at %d, the newest event is %d", m.Seq, seq)
					}
					reset = true
					place = len(log)
					continue
				}
				var n int
				if _, err := fmt.Sscan(string(m.Body), &n); err != nil {
					t.Fatal(err)
				}
				if n < place {
					t.Fatalf("entry %d comes after entry %d, or twice", n, place-1)
				}
				for i := place; i < n; i++ { // no gap among the events that it wants
					if e := log[i]; e.seq > 0 && (r.only == "" || r.only == e.key) {
						t.Fatalf("entry %d is missing before %d", i, n)
					}
				}
				e := log[n]
				if e.seq != m.Seq || e.key != m.Subject || (r.only != "" && r.only != e.key) {
					t.Fatalf("got %s #%d for entry %+v", m.Subject, m.Seq, e)
				}
				newest[e.key] = n
				place = n + 1
			}
			if !reset {
				if published > replay {
					t.Fatalf("no reset for a reader who is %d events behind", published)
				}
				for i := r.from; i < len(log); i++ {
					e := log[i]
					if r.only != "" && r.only != e.key {
						continue
					}
					if got, ok := newest[e.key]; !ok || got < i {
						t.Fatalf("the newest of %s is entry %d or later, the reader's is %d (%v)", e.key, i, got, ok)
					}
				}
			}
			r.from = len(log)
		}

		pick := func(t *rapid.T) *reader {
			if len(readers) == 0 {
				t.Skip("no reader yet")
			}
			return readers[rapid.IntRange(0, len(readers)-1).Draw(t, "reader")]
		}
		add := func(t *rapid.T, r *reader, after string) {
			f := events.Filter{}
			if r.only != "" {
				f.Models = []string{r.only}
			}
			r.s = b.SubscribeAfter(f, after)
			if r.last == "" {
				r.last = r.s.Start()
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) {
				seq++
				e := entry{key: subjects.Draw(t, "subject"), n: len(log), seq: seq}
				log = append(log, e)
				b.Publish(registry.EventOperation, e.key, e.n)
			},
			"sample": func(t *rapid.T) {
				e := entry{key: subjects.Draw(t, "subject"), n: len(log)}
				log = append(log, e)
				b.Sample(registry.EventOperation, e.key, e.n)
			},
			"subscribe": func(t *rapid.T) {
				r := &reader{only: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "only"), from: len(log)}
				add(t, r, "")
				readers = append(readers, r)
			},
			"read": func(t *rapid.T) { check(pick(t)) },
			"connect again": func(t *rapid.T) {
				r := pick(t)
				r.s.Close()
				// It goes on behind the last id it was given, and gets the samples since then once more.
				_, at, ok := events.ParseID(r.last)
				if !ok {
					t.Fatalf("not an id: %q", r.last)
				}
				r.from = 0
				for i, e := range log {
					if e.seq > 0 && e.seq <= at {
						r.from = i + 1
					}
				}
				add(t, r, r.last)
			},
			"close": func(t *rapid.T) {
				r := pick(t)
				r.s.Close()
				for i := range readers {
					if readers[i] == r {
						readers = append(readers[:i], readers[i+1:]...)
						break
					}
				}
			},
			"": func(t *rapid.T) {
				st := b.Stats()
				if st.Subscribers != len(readers) || st.Kept > replay || st.Published != seq || st.KeptSamples > 3 {
					t.Fatalf("stats %+v with %d readers and %d events", st, len(readers), seq)
				}
			},
		})
		for _, r := range readers {
			check(r)
			r.s.Close()
		}
		b.Close()
	})
}
