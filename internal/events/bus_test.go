package events_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

type body struct {
	N int `json:"n"`
}

// now returns what can be read without waiting.
func now(t fataler, s *events.Subscription) []*events.Message {
	t.Helper()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	var all []*events.Message
	for {
		batch, err := s.Next(ended)
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("Next: %v", err)
			}
			return all
		}
		all = append(all, batch...)
	}
}

// brief writes messages as "kind subject #seq body", for comparing.
func brief(ms []*events.Message) string {
	var lines []string
	for _, m := range ms {
		lines = append(lines, fmt.Sprintf("%s %s #%d %s", m.Kind, m.Subject, m.Seq, m.Body))
	}
	return strings.Join(lines, "\n")
}

func want(t *testing.T, ms []*events.Message, lines ...string) {
	t.Helper()
	if got, w := brief(ms), strings.Join(lines, "\n"); got != w {
		t.Errorf("got\n%s\nwant\n%s", got, w)
	}
}

func TestSubscriberGetsWhatComesAfterIt(t *testing.T) {
	b := events.New(events.Options{})
	b.Publish(registry.EventModelStatus, "early", body{0})
	s := b.Subscribe(events.Filter{})
	defer s.Close()
	b.Publish(registry.EventModelStatus, "m", body{1})
	b.Sample(registry.EventResources, "", body{2})
	b.Publish(registry.EventEngine, "llamacpp", body{3})
	want(t, now(t, s), `model.status m #2 {"n":1}`, `resources  #0 {"n":2}`, `engine llamacpp #3 {"n":3}`)
	want(t, now(t, s))
}

func TestSamplesCoalesce(t *testing.T) {
	b := events.New(events.Options{})
	s := b.Subscribe(events.Filter{})
	defer s.Close()
	for i := range 100 {
		b.Sample(registry.EventOperation, "a", body{i})
		b.Sample(registry.EventOperation, "b", body{-i})
	}
	want(t, now(t, s), `operation a #0 {"n":99}`, `operation b #0 {"n":-99}`)

	// The event that ends an operation supersedes its progress, and progress after an event comes after it.
	b.Sample(registry.EventOperation, "a", body{100})
	b.Publish(registry.EventOperation, "a", body{101})
	b.Publish(registry.EventOperation, "b", body{102})
	b.Sample(registry.EventOperation, "b", body{103})
	want(t, now(t, s), `operation a #1 {"n":101}`, `operation b #2 {"n":102}`, `operation b #0 {"n":103}`)
	if st := b.Stats(); st.Coalesced != 201 || st.Sampled != 202 || st.KeptSamples != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestSamplesAreBounded(t *testing.T) {
	b := events.New(events.Options{Samples: 3})
	s := b.Subscribe(events.Filter{})
	defer s.Close()
	for i := range 5 {
		b.Sample(registry.EventOperation, fmt.Sprint(i), body{i})
	}
	want(t, now(t, s), `operation 2 #0 {"n":2}`, `operation 3 #0 {"n":3}`, `operation 4 #0 {"n":4}`)
}

func TestFilter(t *testing.T) {
	b := events.New(events.Options{Replay: 4})
	s := b.Subscribe(events.Filter{
		Models:  []string{"a", "b"},
		Kinds:   []registry.EventKind{registry.EventModelStatus, registry.EventOperation},
		Visible: func(e registry.Event) bool { return e.Subject != "b" || e.Kind == registry.EventOperation },
	})
	defer s.Close()
	b.Publish(registry.EventModelStatus, "a", body{1})
	b.Publish(registry.EventModelStatus, "b", body{2})
	b.Publish(registry.EventEngine, "a", body{3})
	b.Sample(registry.EventOperation, "b", body{4})
	b.Sample(registry.EventOperation, "c", body{5})
	want(t, now(t, s), `model.status a #1 {"n":1}`, `operation b #0 {"n":4}`)

	// A reset passes every filter: the reader cannot know what it missed.
	for i := range 6 {
		b.Publish(registry.EventModelStatus, "other", body{i})
	}
	want(t, now(t, s), `reset  #9 {"reason":"events came faster than you read them"}`)
}

func TestReplay(t *testing.T) {
	b := events.New(events.Options{Replay: 4})
	for i := 1; i <= 6; i++ {
		b.Publish(registry.EventModelStatus, "m", body{i})
	}
	epoch, seq, ok := events.ParseID(b.Position())
	if !ok || seq != 6 {
		t.Fatalf("position %q", b.Position())
	}
	restarted := events.New(events.Options{})
	for _, tc := range []struct {
		name, after string
		lines       []string
	}{
		{"the newest", events.FormatID(epoch, 6), nil},
		{"in the log", events.FormatID(epoch, 4), []string{`model.status m #5 {"n":5}`, `model.status m #6 {"n":6}`}},
		{"just before the log", events.FormatID(epoch, 2), []string{`model.status m #3 {"n":3}`, `model.status m #4 {"n":4}`, `model.status m #5 {"n":5}`, `model.status m #6 {"n":6}`}},
		{"too old", events.FormatID(epoch, 1), []string{`reset  #6 {"reason":"you were away for longer than events are kept"}`}},
		{"of the future", events.FormatID(epoch, 7), []string{`reset  #6 {"reason":"the server was restarted"}`}},
		{"of another run", events.FormatID(strings.Split(restarted.Position(), "-")[0], 0), []string{`reset  #6 {"reason":"the server was restarted"}`}},
		{"garbage", "42", []string{`reset  #6 {"reason":"the position that was asked for is not one of this server"}`}},
		{"none", "", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := b.SubscribeAfter(events.Filter{}, tc.after)
			defer s.Close()
			got := now(t, s)
			want(t, got, tc.lines...)
			if len(got) > 0 && got[len(got)-1].ID() != b.Position() {
				t.Errorf("the last id is %q, the position %q", got[len(got)-1].ID(), b.Position())
			}
		})
	}

	t.Run("a reset is not repeated", func(t *testing.T) {
		s := b.SubscribeAfter(events.Filter{}, "garbage")
		reset := now(t, s)
		s.Close()
		b.Publish(registry.EventModelStatus, "m", body{7})
		s = b.SubscribeAfter(events.Filter{}, reset[0].ID())
		defer s.Close()
		want(t, now(t, s), `model.status m #7 {"n":7}`)
	})
}

func TestStartClosesTheGapBeforeTheFirstEvent(t *testing.T) {
	b := events.New(events.Options{})
	b.Publish(registry.EventModelStatus, "m", body{1})
	s := b.Subscribe(events.Filter{})
	start := s.Start()
	s.Close() // cut off before it read anything
	b.Publish(registry.EventModelStatus, "m", body{2})
	s = b.SubscribeAfter(events.Filter{}, start)
	defer s.Close()
	want(t, now(t, s), `model.status m #2 {"n":2}`)
}

func TestLogIsBoundedInBytes(t *testing.T) {
	b := events.New(events.Options{ReplayBytes: 100_000})
	big := strings.Repeat("x", 20_000)
	for range 50 {
		b.Publish(registry.EventModelUpdated, "m", big)
	}
	if st := b.Stats(); st.KeptBytes > 100_000 || st.Kept < 2 {
		t.Errorf("kept %d events of %d bytes", st.Kept, st.KeptBytes)
	}
	b.Publish(registry.EventModelUpdated, "m", strings.Repeat(big, 10))
	if st := b.Stats(); st.Kept != 1 {
		t.Errorf("kept %d events; the newest is kept even if it is over the bound alone", st.Kept)
	}
}

func TestBatchesAreBounded(t *testing.T) {
	b := events.New(events.Options{Queue: 10})
	s := b.Subscribe(events.Filter{})
	defer s.Close()
	for i := range 25 {
		b.Publish(registry.EventModelStatus, "m", body{i})
	}
	var sizes []int
	for range 3 {
		batch, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(batch))
	}
	if fmt.Sprint(sizes) != "[10 10 5]" {
		t.Errorf("batches of %v", sizes)
	}
	big := strings.Repeat("x", 300<<10)
	for range 4 {
		b.Publish(registry.EventModelStatus, "m", big)
	}
	if batch, _ := s.Next(t.Context()); len(batch) != 1 {
		t.Errorf("a batch of %d big messages", len(batch))
	}
}

func TestNextWaitsAndIsWoken(t *testing.T) {
	b := events.New(events.Options{})
	for _, tc := range []struct {
		name string
		wake func(s *events.Subscription, cancel func())
		err  error
	}{
		{"by an event", func(*events.Subscription, func()) { b.Publish(registry.EventEngine, "x", body{1}) }, nil},
		{"by a sample", func(*events.Subscription, func()) { b.Sample(registry.EventEngine, "x", body{1}) }, nil},
		{"by the context", func(_ *events.Subscription, cancel func()) { cancel() }, context.Canceled},
		{"by Subscription.Close", func(s *events.Subscription, _ func()) { s.Close(); s.Close() }, events.ErrClosed},
		{"by Bus.Close", func(*events.Subscription, func()) { b.Close(); b.Close() }, events.ErrClosed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s := b.Subscribe(events.Filter{})
			defer s.Close()
			got := make(chan error, 1)
			go func() {
				_, err := s.Next(ctx)
				got <- err
			}()
			tc.wake(s, cancel)
			if err := <-got; !errors.Is(err, tc.err) {
				t.Errorf("Next: %v, want %v", err, tc.err)
			}
		})
	}
	if n := b.Stats().Subscribers; n != 0 {
		t.Errorf("%d subscribers are left", n)
	}
}

func TestCloseDeliversWhatIsLeft(t *testing.T) {
	b := events.New(events.Options{})
	s := b.Subscribe(events.Filter{})
	defer s.Close()
	b.Publish(registry.EventEngine, "x", body{1})
	b.Close()
	b.Publish(registry.EventEngine, "x", body{2})
	b.Sample(registry.EventEngine, "x", body{3})
	batch, err := s.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want(t, batch, `engine x #1 {"n":1}`)
	if _, err := s.Next(t.Context()); !errors.Is(err, events.ErrClosed) {
		t.Errorf("Next: %v, want ErrClosed", err)
	}
}

func TestFrame(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b := events.New(events.Options{Now: func() time.Time { return at }})
	s := b.Subscribe(events.Filter{})
	defer s.Close()
	b.Publish(registry.EventModelStatus, "org/m\nodd\rname", map[string]string{"text": "a\nb\u2028"})
	b.Sample(registry.EventResources, "", body{1})
	b.Publish(registry.EventEngine, "x", make(chan int)) // cannot be marshalled: arrives without a body
	got := now(t, s)
	w := "id: " + got[0].ID() + "\nevent: model.status\n" +
		`data: {"seq":1,"kind":"model.status","subject":"org/m\nodd\rname","at":"2026-01-02T03:04:05Z","body":{"text":"a\nb\u2028"}}` + "\n\n"
	if g := string(got[0].Frame()); g != w {
		t.Errorf("got\n%q\nwant\n%q", g, w)
	}
	if g, w := string(got[1].Frame()), "event: resources\ndata: {\"seq\":0,\"kind\":\"resources\",\"at\":\"2026-01-02T03:04:05Z\",\"body\":{\"n\":1}}\n\n"; g != w {
		t.Errorf("got\n%q\nwant\n%q", g, w)
	}
	if g := string(got[2].Body); g != "null" {
		t.Errorf("body %q", g)
	}
	if once, again := got[0].Frame(), got[0].Frame(); &once[0] != &again[0] {
		t.Error("the frame is rendered more than once")
	}
}

func TestID(t *testing.T) {
	for _, id := range []string{"", "-", "-1", "a-", "a-b", "a-01", "a-+1", "a--", "a-18446744073709551616", "a- 1", strings.Repeat("a", 100) + "-1"} {
		if e, n, ok := events.ParseID(id); ok {
			t.Errorf("ParseID(%q) = %q, %d", id, e, n)
		}
	}
	if e, n, ok := events.ParseID(events.FormatID("a-b", 18446744073709551615)); !ok || e != "a-b" || n != 18446744073709551615 {
		t.Errorf("ParseID: %q %d %v", e, n, ok)
	}
}

// Readers that never read neither slow the others down nor hold memory.
func TestDeadReadersCostNothing(t *testing.T) {
	const readers, dead, published = 1000, 50, 600
	b := events.New(events.Options{Replay: 256})
	for range dead {
		t.Cleanup(b.Subscribe(events.Filter{}).Close)
	}
	var wg sync.WaitGroup
	for i := range readers - dead {
		s := b.Subscribe(events.Filter{})
		wg.Go(func() {
			defer s.Close()
			var last uint64
			for {
				batch, err := s.Next(context.Background())
				if err != nil {
					t.Errorf("reader %d: %v", i, err)
					return
				}
				for _, m := range batch {
					switch {
					case m.Kind == registry.EventReset: // Publish does not wait for us, so this may happen
					case m.Seq != last+1:
						t.Errorf("reader %d: event %d after %d", i, m.Seq, last)
						return
					}
					last = m.Seq
				}
				if last == published {
					return
				}
			}
		})
	}
	text := strings.Repeat("x", 1000)
	for range published {
		b.Publish(registry.EventModelStatus, "m", text)
	}
	wg.Wait()
	runtime.GC()
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	if ms.HeapAlloc > 64<<20 {
		t.Errorf("the heap holds %d MiB", ms.HeapAlloc>>20)
	}
	if st := b.Stats(); st.Kept != 256 || st.Subscribers != dead || st.Published != published {
		t.Errorf("stats %+v", st)
	}
}

// A frame is what a browser's EventSource reads: lines up to an empty one.
func TestFrameIsOneEvent(t *testing.T) {
	b := events.New(events.Options{})
	s := b.Subscribe(events.Filter{})
	defer s.Close()
	b.Publish(registry.EventModelStatus, "m", "line\n\nid: forged\n\n")
	frame := string(now(t, s)[0].Frame())
	sc := bufio.NewScanner(strings.NewReader(frame))
	var data string
	lines := 0
	for sc.Scan() && sc.Text() != "" {
		lines++
		if d, ok := strings.CutPrefix(sc.Text(), "data: "); ok {
			data = d
		}
	}
	var e registry.Event
	if err := json.Unmarshal([]byte(data), &e); err != nil || lines != 3 || sc.Scan() {
		t.Errorf("frame %q: %v", frame, err)
	}
	if p := string(events.PositionFrame("e-1")); p != "id: e-1\n\n" {
		t.Errorf("position frame %q", p)
	}
}
