// Package events tells everyone who asks what happens: a bus with a replay ring.
//
// There is one log for all readers. Publish appends to it and a reader is no more than a position in it, so a reader
// that is slow, or never reads at all, costs a few words of memory and no time of anybody else's. The log keeps the
// newest events, bounded in number and in bytes; who falls behind its end is told so with one registry.EventReset and
// goes on from there.
//
// Samples (GPU and RAM figures, the progress of an operation that runs) are kept beside the log, the newest of each
// kind and subject only: a slow reader gets the newest and never the ones before.
//
// Rejected: a channel for each subscriber. A thousand of them, each deep enough for a burst, hold memory that grows with
// the number of readers, and Publish has to visit every one of them.
package events

import (
	"container/list"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Options set up a Bus. The zero value is usable.
type Options struct {
	Replay      int              // events kept for readers that were away; default 4096
	ReplayBytes int              // … of at most so many bytes together; default 16 MiB. The newest is always kept
	Samples     int              // samples kept, one for each kind and subject; default 1024
	Queue       int              // messages that one Next hands out at most; default 256
	Now         func() time.Time // default time.Now
	Logger      *slog.Logger     // default: nothing is logged
}

// Bus carries events from those who make them to those who read them. It is safe for concurrent use.
type Bus struct {
	opts  Options
	epoch string // tells one run of the server from another
	done  chan struct{}

	mu      sync.RWMutex
	closed  bool
	changed chan struct{} // closed, and replaced, when something is added
	seq     uint64        // of the newest event
	order   uint64        // of the newest event or sample

	log     []*Message // ring: log[(head+i)%len(log)], i in 0..count-1, is in order
	head    int
	count   int
	bytes   int
	lost    uint64 // order of the newest event that the log no longer has
	samples map[sampleKey]*list.Element
	recent  *list.List // of *Message: the samples, oldest first

	stats  Stats
	resets atomic.Uint64 // counted by readers, who hold the lock for reading only
}

type sampleKey struct {
	kind    registry.EventKind
	subject string
}

// Stats count what went through a Bus since it was made.
type Stats struct {
	Subscribers int    // now
	Published   uint64 // events
	Sampled     uint64 // samples
	Coalesced   uint64 // samples that were replaced by a newer one or by an event
	Dropped     uint64 // events and samples that left the log or the samples because of their bounds
	Resets      uint64 // readers told to take a snapshot
	Kept        int    // events in the log now
	KeptBytes   int    // … and their bytes
	KeptSamples int
}

// New makes a Bus.
func New(opts Options) *Bus {
	if opts.Replay <= 0 {
		opts.Replay = 4096
	}
	if opts.ReplayBytes <= 0 {
		opts.ReplayBytes = 16 << 20
	}
	if opts.Samples <= 0 {
		opts.Samples = 1024
	}
	if opts.Queue <= 0 {
		opts.Queue = 256
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	var epoch [6]byte
	_, _ = rand.Read(epoch[:]) // never fails: crypto/rand ends the program instead
	return &Bus{
		opts:    opts,
		epoch:   hex.EncodeToString(epoch[:]),
		done:    make(chan struct{}),
		changed: make(chan struct{}),
		samples: map[sampleKey]*list.Element{},
		recent:  list.New(),
	}
}

// Publish tells all readers that something happened. The event gets the next sequence number and can be replayed.
// body is marshalled to JSON once for all. Publish does not wait for any reader, and does nothing after Close.
//
// A sample of the same kind and subject that a reader has not read yet is superseded: the reader gets the event only.
func (b *Bus) Publish(kind registry.EventKind, subject string, body any) {
	m := b.message(kind, subject, body)
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	b.seq++
	m.Seq = b.seq
	m.id = FormatID(b.epoch, m.Seq)
	if e, ok := b.samples[sampleKey{kind, subject}]; ok {
		b.dropSample(e)
		b.stats.Coalesced++
	}
	b.append(m)
	b.stats.Published++
	b.wakeAndUnlock(m)
}

// Sample tells all readers the newest value of something that changes all the time. A reader that is behind gets only
// the newest sample of each kind and subject. Samples have no sequence number and are not replayed.
func (b *Bus) Sample(kind registry.EventKind, subject string, body any) {
	m := b.message(kind, subject, body)
	key := sampleKey{kind, subject}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	if e, ok := b.samples[key]; ok {
		b.dropSample(e)
		b.stats.Coalesced++
	}
	for b.recent.Len() >= b.opts.Samples {
		b.dropSample(b.recent.Front())
		b.stats.Dropped++
	}
	b.samples[key] = b.recent.PushBack(m)
	b.stats.Sampled++
	b.wakeAndUnlock(m)
}

// message makes a message without a place in the log. It runs outside of the lock: marshalling is the slow part.
func (b *Bus) message(kind registry.EventKind, subject string, body any) *Message {
	data, err := json.Marshal(body)
	if err != nil {
		// A programming mistake. The readers still learn that something happened to the subject.
		b.opts.Logger.Error("an event's body cannot be written as JSON; it is sent without one", "kind", kind, "subject", subject, "error", err)
		data = json.RawMessage("null")
	}
	m := &Message{Event: registry.Event{Kind: kind, Subject: subject, At: b.opts.Now(), Body: data}}
	m.size = 2*len(data) + len(subject) + messageOverhead // twice: the frame repeats the body
	return m
}

// messageOverhead is roughly what a Message takes beside its body, in bytes.
const messageOverhead = 320

// wakeAndUnlock gives m its place, lets go of the lock and then wakes the readers that wait, so that they do not wake up
// only to wait for the lock.
func (b *Bus) wakeAndUnlock(m *Message) {
	b.order++
	m.order = b.order
	woken := b.changed
	b.changed = make(chan struct{})
	b.mu.Unlock()
	close(woken)
}

// append puts m into the log and drops the oldest until the bounds hold.
func (b *Bus) append(m *Message) {
	b.bytes += m.size
	for b.count > 0 && (b.count >= b.opts.Replay || b.bytes > b.opts.ReplayBytes) {
		old := b.log[b.head]
		b.log[b.head] = nil
		b.head = (b.head + 1) % len(b.log)
		b.count--
		b.bytes -= old.size
		b.lost = old.order
		b.stats.Dropped++
	}
	if b.count == len(b.log) {
		b.grow()
	}
	b.log[(b.head+b.count)%len(b.log)] = m
	b.count++
}

// grow doubles the ring, up to Replay: a bus that carries little stays small.
func (b *Bus) grow() {
	bigger := make([]*Message, min(max(64, 2*len(b.log)), b.opts.Replay))
	for i := range b.count {
		bigger[i] = b.at(i)
	}
	b.log, b.head = bigger, 0
}

// at returns the i-th oldest event of the log.
func (b *Bus) at(i int) *Message { return b.log[(b.head+i)%len(b.log)] }

// after returns the index of the first event of the log that is behind the place.
func (b *Bus) after(order uint64) int {
	return sort.Search(b.count, func(i int) bool { return b.at(i).order > order })
}

func (b *Bus) dropSample(e *list.Element) {
	m := b.recent.Remove(e).(*Message)
	delete(b.samples, sampleKey{m.Kind, m.Subject})
}

// Position returns the id of the newest event: a client that takes a snapshot now and then subscribes after this id
// misses nothing.
func (b *Bus) Position() string {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return FormatID(b.epoch, b.seq)
}

// Close ends every subscription: each reader gets what is left and then ErrClosed. It is idempotent.
func (b *Bus) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.closed = true
	close(b.done)
}

// Stats returns the counts so far.
func (b *Bus) Stats() Stats {
	b.mu.RLock()
	defer b.mu.RUnlock()
	s := b.stats
	s.Kept, s.KeptBytes, s.KeptSamples = b.count, b.bytes, b.recent.Len()
	s.Resets = b.resets.Load()
	return s
}
