package hubtest_test

import (
	"bytes"
	"errors"
	"io"
	"math/bits"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
)

// answer is everything that came of one request for a large file.
type answer struct {
	status  int
	head    http.Header
	body    []byte
	err     error         // while the body was read
	first   time.Duration // until the headers
	elapsed time.Duration
}

// large asks the second host for a file or a range of it.
func large(t *testing.T, h *hubtest.Hub, id, name, span string) answer {
	t.Helper()
	resp, err := request(t, "GET", h.URL+"/"+id+"/resolve/main/"+name, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	header := map[string]string{}
	if span != "" {
		header["Range"] = "bytes=" + span
	}
	began := time.Now()
	resp, err = request(t, "GET", resp.Header.Get("Location"), header)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, head: resp.Header, first: time.Since(began)}
	a.body, a.err = io.ReadAll(resp.Body)
	a.elapsed = time.Since(began)
	return a
}

func TestFaultsOfABody(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{Seed: 7})
	b := content(2_000_000)
	h.Put(t, "org/m", map[string][]byte{"model.gguf": b})
	ask := func(t *testing.T, span string, faults ...hubtest.Fault) answer {
		t.Helper()
		h.Heal()
		h.Fault(faults...)
		return large(t, h, "org/m", "model.gguf", span)
	}
	t.Run("truncate", func(t *testing.T) {
		a := ask(t, "", hubtest.Fault{Kind: hubtest.FaultTruncate, After: 12345})
		if a.status != 200 || !errors.Is(a.err, io.ErrUnexpectedEOF) || !bytes.Equal(a.body, b[:12345]) {
			t.Errorf("%d, %d bytes, %v", a.status, len(a.body), a.err)
		}
	})
	t.Run("truncate anywhere", func(t *testing.T) {
		lengths := map[int]bool{}
		for range 5 {
			a := ask(t, "1000-1999", hubtest.Fault{Kind: hubtest.FaultTruncate, After: hubtest.Anywhere})
			if len(a.body) >= 1000 || a.err == nil || !bytes.HasPrefix(b[1000:], a.body) {
				t.Errorf("%d bytes, %v", len(a.body), a.err)
			}
			lengths[len(a.body)] = true
		}
		if len(lengths) < 2 {
			t.Errorf("it is always the same place: %v", lengths)
		}
	})
	t.Run("reset", func(t *testing.T) {
		a := ask(t, "", hubtest.Fault{Kind: hubtest.FaultReset, After: 1000})
		if !errors.Is(a.err, syscall.ECONNRESET) || len(a.body) > 1000 {
			t.Errorf("%d bytes, %v", len(a.body), a.err)
		}
	})
	t.Run("stall, then on", func(t *testing.T) {
		a := ask(t, "", hubtest.Fault{Kind: hubtest.FaultStall, After: 1_000_000, Wait: 300 * time.Millisecond})
		if a.err != nil || !bytes.Equal(a.body, b) || a.elapsed < 300*time.Millisecond {
			t.Errorf("%d bytes in %v, %v", len(a.body), a.elapsed, a.err)
		}
	})
	t.Run("flip", func(t *testing.T) {
		for _, span := range []string{"", "100000-199999"} {
			a := ask(t, span, hubtest.Fault{Kind: hubtest.FaultFlip, Bit: 8*150_000 + 3})
			want := bytes.Clone(b)
			want[150_000] ^= 8
			if span != "" {
				want = want[100_000:200_000]
			}
			if a.err != nil || !bytes.Equal(a.body, want) {
				t.Errorf("%q: not that bit: %d bytes, %v", span, len(a.body), a.err)
			}
		}
	})
	t.Run("flip anywhere", func(t *testing.T) {
		a := ask(t, "500000-", hubtest.Fault{Kind: hubtest.FaultFlip, Bit: hubtest.Anywhere})
		wrong := 0
		for i := range a.body {
			wrong += bits.OnesCount8(a.body[i] ^ b[500_000+i])
		}
		if wrong != 1 || len(a.body) != 1_500_000 {
			t.Errorf("%d bits of %d bytes are wrong", wrong, len(a.body))
		}
	})
	t.Run("ignore range", func(t *testing.T) {
		a := ask(t, "100-199", hubtest.Fault{Kind: hubtest.FaultIgnoreRange})
		if a.status != 200 || !bytes.Equal(a.body, b) {
			t.Errorf("%d, %d bytes", a.status, len(a.body))
		}
	})
	t.Run("another range", func(t *testing.T) {
		a := ask(t, "100-199", hubtest.Fault{Kind: hubtest.FaultRange, Delta: 10})
		if a.status != 206 || a.head.Get("Content-Range") != "bytes 110-209/2000000" || !bytes.Equal(a.body, b[100:200]) {
			t.Errorf("%d, %d bytes, %v", a.status, len(a.body), a.head)
		}
	})
	t.Run("length too long", func(t *testing.T) {
		a := ask(t, "", hubtest.Fault{Kind: hubtest.FaultLength, Delta: 100})
		if a.head.Get("Content-Length") != "2000100" || !errors.Is(a.err, io.ErrUnexpectedEOF) || !bytes.Equal(a.body, b) {
			t.Errorf("%d bytes of %s, %v", len(a.body), a.head.Get("Content-Length"), a.err)
		}
	})
	t.Run("length too short", func(t *testing.T) {
		a := ask(t, "", hubtest.Fault{Kind: hubtest.FaultLength, Delta: -100})
		if a.err != nil || !bytes.Equal(a.body, b[:len(b)-100]) {
			t.Errorf("%d bytes, %v", len(a.body), a.err)
		}
	})
	t.Run("slow", func(t *testing.T) {
		a := ask(t, "0-499999", hubtest.Fault{Kind: hubtest.FaultSlow, Rate: 2_000_000})
		if a.err != nil || !bytes.Equal(a.body, b[:500_000]) || a.elapsed < 200*time.Millisecond {
			t.Errorf("%d bytes in %v, %v", len(a.body), a.elapsed, a.err)
		}
	})
	t.Run("how often", func(t *testing.T) {
		h.Heal()
		h.Fault(hubtest.Fault{Kind: hubtest.FaultTruncate, Skip: 2, Times: 3, After: 10, Match: "org/m/model.gguf"},
			hubtest.Fault{Kind: hubtest.FaultTruncate, Match: "another.gguf"})
		var cut []bool
		for range 7 {
			cut = append(cut, large(t, h, "org/m", "model.gguf", "").err != nil)
		}
		for i, c := range cut {
			if c != (i >= 2 && i < 5) {
				t.Errorf("cut were %v", cut)
				break
			}
		}
	})
}

func TestFaultsOfABeginning(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{})
	other := hubtest.New(t, hubtest.Options{})
	b := content(100_000)
	h.Put(t, "org/m", map[string][]byte{"model.gguf": b})
	ask := func(path string, f hubtest.Fault) (int, http.Header, []byte) {
		t.Helper()
		h.Heal()
		h.Fault(f)
		resp, err := request(t, "GET", h.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header, body
	}
	const api, file = "/api/models/org/m", "/org/m/resolve/main/model.gguf"
	if status, head, _ := ask(api, hubtest.Fault{Kind: hubtest.FaultStatus, Status: 429, Wait: 1500 * time.Millisecond}); status != 429 || head.Get("RateLimit") != `"api";r=0;t=2` {
		t.Errorf("429: %d %v", status, head)
	}
	if status, head, _ := ask(file, hubtest.Fault{Kind: hubtest.FaultStatus, Status: 502, Wait: time.Second}); status != 502 || head.Get("Retry-After") != "1" {
		t.Errorf("502: %d %v", status, head)
	}
	if status, head, body := ask(api, hubtest.Fault{Kind: hubtest.FaultHTML}); status != 200 || !strings.HasPrefix(head.Get("Content-Type"), "text/html") || !bytes.Contains(body, []byte("<h1>")) {
		t.Errorf("html: %d %v", status, head)
	}
	if status, head, _ := ask(file, hubtest.Fault{Kind: hubtest.FaultLoop}); status != 302 || head.Get("Location") != file {
		t.Errorf("loop: %d %v", status, head)
	}
	if status, head, _ := ask(file, hubtest.Fault{Kind: hubtest.FaultRedirect, Location: other.URL + "%s"}); status != 302 || head.Get("Location") != other.URL+file {
		t.Errorf("redirect: %d %v", status, head)
	}
	if _, head, _ := ask(file, hubtest.Fault{Kind: hubtest.FaultLinkedSize, Delta: -1}); head.Get("X-Linked-Size") != "99999" {
		t.Errorf("linked size: %v", head)
	}
	_, head, _ := ask(file, hubtest.Fault{Kind: hubtest.FaultLinkedETag})
	_, _, tree := ask(api+"/tree/main", hubtest.Fault{Kind: hubtest.FaultLinkedETag})
	if lie := strings.Trim(head.Get("X-Linked-Etag"), `"`); lie == sum(b) || len(lie) != 64 || !bytes.Contains(tree, []byte(lie)) {
		t.Errorf("linked etag: %q; the tree has %s", lie, tree)
	}
	_, head, _ = ask(file, hubtest.Fault{Kind: hubtest.FaultExpired})
	if status, _, body := get(t, head.Get("Location"), nil); status != 403 || !bytes.Contains(body, []byte("expired")) {
		t.Errorf("expired: %d %s", status, body)
	}
}

// TestStallEnds: a stall without end ends with the client, and with the Hub.
func TestStallEnds(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{})
	h.Put(t, "org/m", map[string][]byte{"model.gguf": content(100_000)})
	h.Fault(hubtest.Fault{Kind: hubtest.FaultStall, After: 50_000})
	resp, err := request(t, "GET", h.URL+"/org/m/resolve/main/model.gguf", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	resp, err = request(t, "GET", resp.Header.Get("Location"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	half := make([]byte, 50_000)
	if _, err := io.ReadFull(resp.Body, half); err != nil {
		t.Fatal(err)
	}
	if s := h.Served(); s.Open != 1 || s.Bytes != 50_000 || s.MostOpen != 1 || s.Faults != 1 {
		t.Errorf("while it stalls: %+v", s)
	}
	// Close, by the end of this test, would wait for ever if the stall did not end.
}

// TestEdges: connections are capped in turn, and an uncapped one is not slowed by the others.
func TestEdges(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{Edges: []int64{1_000_000, 0}})
	b := content(500_000)
	h.Put(t, "org/m", map[string][]byte{"model.gguf": b})
	capped := large(t, h, "org/m", "model.gguf", "")
	free := large(t, h, "org/m", "model.gguf", "")
	if !bytes.Equal(capped.body, b) || !bytes.Equal(free.body, b) {
		t.Error("the files are not whole")
	}
	// The buffers on the way take some of it at once.
	if capped.elapsed < 250*time.Millisecond || free.elapsed > capped.elapsed/2 {
		t.Errorf("at 1 MB/s 0.5 MB took %v, uncapped %v", capped.elapsed, free.elapsed)
	}
}

// TestPythonSurvives what the real client survives: rate limits, cut connections, both at once.
func TestPythonSurvives(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{Seed: 1})
	files := map[string][]byte{"a.gguf": content(3_000_000), "b.gguf": content(1_000_000), "config.json": []byte("{}")}
	h.Put(t, "org/m", files)
	for name, faults := range map[string][]hubtest.Fault{
		"429 on the second host": {{Kind: hubtest.FaultStatus, Host: hubtest.OnCDN, Status: 429, Times: 2}},
		"429 on the Hub":         {{Kind: hubtest.FaultStatus, Host: hubtest.OnHub, Match: "resolve", Status: 429, Times: 2}},
		"503 on the Hub":         {{Kind: hubtest.FaultStatus, Host: hubtest.OnHub, Match: "resolve", Status: 503, Times: 1}},
		"cut connections":        {{Kind: hubtest.FaultTruncate, Host: hubtest.OnCDN, After: 700_000, Times: 4}},
	} {
		t.Run(name, func(t *testing.T) {
			h.Heal()
			h.Forget()
			h.Fault(faults...)
			dir := run(t, h, t.TempDir(), `from huggingface_hub import snapshot_download; print(snapshot_download("org/m"))`)
			whole(t, dir, files)
			if h.Served().Faults == 0 {
				t.Error("nothing went wrong")
			}
		})
	}
}

// TestPythonGoesOn where it was cut: it keeps what it has by pieces of 10 MiB.
func TestPythonGoesOn(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{})
	files := map[string][]byte{"a.gguf": content(25 << 20)}
	h.Put(t, "org/m", files)
	for name, ignore := range map[string]bool{"by a range": false, "from the start, where ranges are ignored": true} {
		t.Run(name, func(t *testing.T) {
			h.Heal()
			h.Forget()
			h.Fault(hubtest.Fault{Kind: hubtest.FaultTruncate, Host: hubtest.OnCDN, After: 15 << 20, Times: 1})
			if ignore {
				h.Fault(hubtest.Fault{Kind: hubtest.FaultIgnoreRange, Host: hubtest.OnCDN})
			}
			dir := run(t, h, t.TempDir(), `from huggingface_hub import snapshot_download; print(snapshot_download("org/m"))`)
			whole(t, dir, files)
			want := int64(15<<20 + 15<<20)
			if ignore {
				want = 15<<20 + 25<<20
			}
			if s := h.Served(); s.Ranges != 1 || s.FromCDN != want {
				t.Errorf("%d ranges, %d bytes, not %d", s.Ranges, s.FromCDN, want)
			}
		})
	}
}

// TestPythonGivesUp on what the real client does not survive, in its own words.
func TestPythonGivesUp(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{Seed: 1})
	h.Put(t, "org/m", map[string][]byte{"a.gguf": content(3_000_000)})
	h.Put(t, "org/evil", map[string][]byte{"../../escaped.txt": []byte("x")})
	for name, c := range map[string]struct {
		faults []hubtest.Fault
		id     string
		want   string
	}{
		"reset":       {[]hubtest.Fault{{Kind: hubtest.FaultReset, Host: hubtest.OnCDN, After: 1000}}, "org/m", "ReadError"},
		"wrong size":  {[]hubtest.Fault{{Kind: hubtest.FaultLinkedSize, Delta: 5}}, "org/m", "OSError"},
		"html":        {[]hubtest.Fault{{Kind: hubtest.FaultHTML, Match: "resolve"}}, "org/m", "LocalEntryNotFoundError"},
		"loop":        {[]hubtest.Fault{{Kind: hubtest.FaultLoop, Match: "resolve"}}, "org/m", "TooManyRedirects"},
		"expired":     {[]hubtest.Fault{{Kind: hubtest.FaultExpired}}, "org/m", "HfHubHTTPError"},
		"a way out":   {nil, "org/evil", "ValueError"},
		"500 forever": {[]hubtest.Fault{{Kind: hubtest.FaultStatus, Match: "/repos/", Status: 500}}, "org/m", "HfHubHTTPError"},
	} {
		t.Run(name, func(t *testing.T) {
			h.Heal()
			h.Fault(c.faults...)
			out := run(t, h, t.TempDir(), `
from huggingface_hub import snapshot_download
try: print("downloaded to", snapshot_download("`+c.id+`"))
except Exception as e: print(type(e).__name__)`, "HF_TOKEN=hf_secret")
			if out != c.want {
				t.Errorf("it ends with %s, not %s", out, c.want)
			}
			if leaked := h.Served().CDNTokens; len(leaked) > 0 {
				t.Errorf("the second host saw %q", leaked)
			}
		})
	}
}
