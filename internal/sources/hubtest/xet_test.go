package hubtest_test

import (
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
)

// TestPythonXet: where Xet is offered the client takes large files that way, at both of its settings.
func TestPythonXet(t *testing.T) {
	h := hubtest.New(t, hubtest.Options{Xet: true, Tokens: map[string]string{"hf_alice": "alice"}})
	files := map[string][]byte{"config.json": []byte("{}"), "empty.gguf": nil, "small.gguf": content(100), "one.gguf": content(64 << 10),
		"large.gguf": content(150_000_000)}
	h.Put(t, "org/m", files)
	h.Set(t, "org/m", hubtest.Settings{Gated: "auto", Authorized: []string{"alice"}})
	for _, mode := range []string{"0", "1"} {
		h.Forget()
		dir := run(t, h, t.TempDir(), `from huggingface_hub import snapshot_download; print(snapshot_download("org/m"))`,
			"HF_TOKEN=hf_alice", "HF_XET_HIGH_PERFORMANCE="+mode)
		whole(t, dir, files)
		xorbs, plain := 0, 0
		for _, r := range h.Requests() {
			if r.CDN && strings.HasPrefix(r.Path, "/xorbs/") {
				xorbs++
			}
			if r.CDN && strings.HasPrefix(r.Path, "/repos/") {
				plain++
			}
		}
		if xorbs < 3+2 || plain > 1 {
			t.Errorf("%d ranges of xorbs were asked for and %d plain files", xorbs, plain)
		}
		for _, token := range h.Served().CDNTokens {
			if !strings.HasPrefix(token, "Bearer xet_") {
				t.Errorf("the second host saw %q", token)
			}
		}
	}
}
