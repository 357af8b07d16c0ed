package fetch

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var testIdentity = identity{Size: 1000, Tag: "t", Kind: SHA256, Sum: "ab", BootID: "boot"}

// journalOf returns a journal of three ranges and a digest, of which the first is synced, and its length up to each record.
func journalOf(t testing.TB) ([]byte, []int64) {
	path := filepath.Join(t.TempDir(), "j")
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	j, err := writeJournal(path, history{identity: testIdentity}, false)
	check(err)
	defer j.close()
	ends := []int64{j.length()}
	step := func(err error) { check(err); ends = append(ends, j.length()) }
	step(j.wrote(span{0, 100}))
	step(j.synced(j.length()))
	step(j.wrote(span{500, 600}))
	step(j.hashed(100, []byte("state")))
	step(j.wrote(span{100, 200}))
	b, err := os.ReadFile(path)
	check(err)
	return b, ends
}

// TestJournal reads back what was written, all of it on the same boot and the synced part on another.
func TestJournal(t *testing.T) {
	b, _ := journalOf(t)
	opt := cmp.AllowUnexported(history{}, span{})
	got, err := decodeJournal(b, "boot")
	must(t, err)
	if d := cmp.Diff(history{testIdentity, spans{{0, 200}, {500, 600}}, 100, []byte("state")}, got, opt); d != "" {
		t.Error(d)
	}
	for _, boot := range []string{"another", ""} {
		got, err = decodeJournal(b, boot)
		must(t, err)
		if d := cmp.Diff(history{testIdentity, spans{{0, 100}}, 0, nil}, got, opt); d != "" {
			t.Errorf("booted as %q: %s", boot, d)
		}
	}
}

// TestJournalRewritten begins a journal with what an earlier one says.
func TestJournalRewritten(t *testing.T) {
	b, _ := journalOf(t)
	old, err := decodeJournal(b, "boot")
	must(t, err)
	for _, synced := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "j")
		j, err := writeJournal(path, old, synced)
		must(t, err)
		must(t, j.wrote(span{900, 1000}))
		j.close()
		b, err := os.ReadFile(path)
		must(t, err)
		same, err := decodeJournal(b, "boot")
		must(t, err)
		if want := append(append(spans{}, old.done...), span{900, 1000}); !cmp.Equal(same.done, want, cmp.AllowUnexported(span{})) || same.pos != 100 {
			t.Errorf("read back %v and %d", same.done, same.pos)
		}
		other, err := decodeJournal(b, "another")
		must(t, err)
		want := old.done
		if !synced {
			want = nil
		}
		if !cmp.Equal(other.done, want, cmp.AllowUnexported(span{})) {
			t.Errorf("after another boot %v, want %v (synced: %v)", other.done, want, synced)
		}
	}
}

// TestJournalTorn cuts a journal at every place and changes each of its bits: what is read is always a beginning of what
// was written.
func TestJournalTorn(t *testing.T) {
	b, ends := journalOf(t)
	whole := func(n int64) spans {
		var s spans
		for i, r := range []span{{0, 100}, {}, {500, 600}, {}, {100, 200}} {
			if ends[i+1] <= n {
				s.add(r)
			}
		}
		return s
	}
	check := func(b []byte, sound int64, what string, at int) {
		h, err := decodeJournal(b, "boot")
		if err != nil {
			if sound >= ends[0] {
				t.Errorf("%s at %d: %v", what, at, err)
			}
			return
		}
		if want := whole(sound); !cmp.Equal(h.done, want, cmp.AllowUnexported(span{})) {
			t.Errorf("%s at %d: %v, want %v", what, at, h.done, want)
		}
	}
	for n := range len(b) {
		check(b[:n], int64(n), "cut", n)
		check(append(bytes.Clone(b[:n]), make([]byte, len(b)-n)...), int64(n), "zeros", n)
	}
	for n := range len(b) * 8 {
		c := bytes.Clone(b)
		c[n/8] ^= 1 << (n % 8)
		check(c, int64(n/8), "flipped", n)
	}
}

// TestJournalForeign begins anew for a journal that is not of this file.
func TestJournalForeign(t *testing.T) {
	data := content(1<<20, 4)
	for name, spoil := range map[string]func(t *testing.T, f *file){
		"no journal":        func(t *testing.T, f *file) { must(t, os.Remove(f.journalPath())) },
		"empty":             func(t *testing.T, f *file) { must(t, os.Truncate(f.journalPath(), 0)) },
		"garbage":           func(t *testing.T, f *file) { must(t, os.WriteFile(f.journalPath(), content(5000, 9), 0o600)) },
		"another tag":       func(_ *testing.T, f *file) { f.Tag = "other" },
		"another size":      func(_ *testing.T, f *file) { f.Size++ },
		"another digest":    func(_ *testing.T, f *file) { f.Digest = digest(SHA256, []byte("other")) },
		"a shorter partial": func(t *testing.T, f *file) { must(t, os.Truncate(f.Partial, 1000)) },
		"a longer partial":  func(t *testing.T, f *file) { must(t, os.Truncate(f.Partial, 2<<20)) },
		"a journal's folder": func(t *testing.T, f *file) {
			must(t, os.Remove(f.journalPath()))
			must(t, os.Symlink(f.Partial, f.journalPath()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "p")
			must(t, os.WriteFile(path, data, 0o600))
			f := &file{File: File{Partial: path, Size: 1 << 20, Tag: "t", Digest: digest(SHA256, data)}}
			j, err := writeJournal(f.journalPath(), history{identity: f.identity(), done: spans{{0, 1 << 20}}}, false)
			must(t, err)
			j.close()
			recall := func() history {
				f.data, err = os.OpenFile(path, os.O_RDWR, 0)
				must(t, err)
				defer f.data.Close()
				h, _, err := f.recall()
				must(t, err)
				return h
			}
			if h := recall(); h.done.bytes() != 1<<20 {
				t.Fatalf("its own journal says %v", h.done)
			}
			spoil(t, f)
			h := recall()
			info, err := os.Stat(path)
			must(t, err)
			if len(h.done) > 0 || info.Size() != 0 {
				t.Errorf("trusts %v; the file has %d bytes", h.done, info.Size())
			}
		})
	}
}

func FuzzJournal(f *testing.F) {
	b, ends := journalOf(f)
	f.Add(b, "boot")
	f.Add(b[:ends[2]], "another")
	f.Add([]byte(journalMagic), "")
	// A record with a right sum, whose numbers are nonsense.
	j := &journal{buf: []byte(journalMagic)}
	_ = j.record(recordIdentity, []byte(`{"size":9223372036854775807,"boot_id":"boot"}`))
	_ = j.record(recordRange, rangePayload(span{-1, -2}))
	_ = j.record(recordDigest, binary.LittleEndian.AppendUint64(nil, 1<<63))
	f.Add(bytes.Clone(j.buf), "boot")
	f.Fuzz(func(t *testing.T, b []byte, boot string) {
		h, err := decodeJournal(b, boot)
		if err != nil {
			return
		}
		for i, s := range h.done {
			if s.off < 0 || s.off >= s.end || s.end > h.identity.Size || i > 0 && h.done[i-1].end >= s.off {
				t.Fatalf("ranges %v of %d bytes", h.done, h.identity.Size)
			}
		}
		if h.pos < 0 || h.pos > h.done.prefix() {
			t.Fatalf("a digest of %d bytes where %v are there", h.pos, h.done)
		}
	})
}

// TestJournalRandom writes many records at random and reads all of them back.
func TestJournalRandom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	id := testIdentity
	id.Size = 1 << 40
	j, err := writeJournal(path, history{identity: id}, false)
	must(t, err)
	defer j.close()
	var want spans
	for range 2000 {
		off := rand.Int64N(id.Size - 1<<20)
		s := span{off, off + 1 + rand.Int64N(1<<20)}
		want.add(s)
		must(t, j.wrote(s))
	}
	b, err := os.ReadFile(path)
	must(t, err)
	h, err := decodeJournal(b, "boot")
	must(t, err)
	if !cmp.Equal(h.done, want, cmp.AllowUnexported(span{})) {
		t.Error("the ranges differ")
	}
}
