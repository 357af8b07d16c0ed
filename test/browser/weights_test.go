package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	neturl "net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
)

// hub is a Hub on this machine that has the sample model in two quantisations (by their names; a label is all that a Hub
// knows), and a repository that is gated.
func hub(t *testing.T) *hubtest.Hub {
	t.Helper()
	file, root := weights(t), t.TempDir()
	put := func(path string) {
		to := filepath.Join(root, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("team/SmolLM2-GGUF/SmolLM2-135M-Instruct.Q4_1.gguf")
	put("team/SmolLM2-GGUF/SmolLM2-135M-Instruct.Q8_0.gguf")
	put("team/Gated-GGUF/gated.Q4_1.gguf")
	return hubtest.New(t, hubtest.Options{Root: root, Gated: []string{"team/Gated-GGUF"}})
}

// hubAt is the environment of a server whose Hub is at url, with a cache of its own and nobody's token.
func hubAt(t *testing.T, url string) []string {
	return []string{"HF_ENDPOINT=" + url, "HF_HOME=" + t.TempDir(), "HF_TOKEN=", "HF_HUB_CACHE=", "HF_HUB_OFFLINE="}
}

// TestWeightsFromAHub registers a model by the id of its repository alone, chooses a quantisation, fetches it with a pause,
// and deletes it from the disk.
func TestWeightsFromAHub(t *testing.T) {
	h := hub(t)
	url := serve(t, hubAt(t, h.URL)...)
	b := open(t)
	b.resize(shapes[0], shapes[0].height)
	firstAccount(b, url)

	// The id of the repository is all that has to be typed.
	b.open(url + "/models/new")
	b.until(`document.activeElement.id === "f-source_path"`)
	b.write("#f-source_path", "team/Gated-GGUF")
	b.until(says("#preview", "gated"))
	b.look("form-gated")
	// What the address bar shows is taken for what it names.
	b.rewrite("#f-source_path", h.URL+"/team/SmolLM2-GGUF/tree/main")
	b.until(says("#preview", "Read as team/SmolLM2-GGUF at the revision main"))
	b.rewrite("#f-source_path", "team/SmolLM2-GGUF")
	b.until(says("#preview .plan", "Fits") + ` && document.querySelectorAll("#preview input[type=radio]").length === 2`)
	b.until(`document.querySelector("#f-model_id").value === "team/SmolLM2-GGUF" && document.querySelector("#f-model_format").value === "gguf"`)
	b.until(`!document.querySelector("#f-model_id-filled").hidden && ` + says("#preview", "to be fetched"))
	if n := h.Served().Bytes; n > 4<<20 {
		t.Errorf("looking took %d bytes of the Hub", n)
	}

	// A choice is a click; what somebody types is never overwritten.
	b.click(`.offer:has(input[value*="Q8_0"])`)
	b.until(`document.querySelector("#preview input[value*=Q8_0]").checked && ` + says("#preview", "Fits"))
	b.rewrite("#f-model_id", "smol\t")
	b.until(`document.querySelector("#f-model_id-filled").hidden`)
	b.write("#f-context_length", "1024\t")
	b.until(says("#preview", "1,024 tokens"))
	b.until(`document.querySelector("#f-model_id").value === "smol" && document.querySelector("#preview input[value*=Q8_0]").checked`)
	b.look("form-filled")
	b.click("#save")

	// Fetch it, with a pause, over a slow line.
	b.until(`location.pathname === "/models/smol" && ` + says("#files .status", "Not fetched"))
	b.look("files-absent")
	h.Fault(hubtest.Fault{Kind: hubtest.FaultSlow, Host: hubtest.OnCDN, Rate: 256 << 10})
	b.click("#fetch")
	b.until(says("#files .stage.now", " of ") + ` && ` + says("#head .status", "Fetching"))
	b.look("files-fetching")
	b.press("#fetch-steer", func() {}) // its place on the page: live updates put a new button there again and again
	b.until(says("#fetch-steer", "Resume") + ` && ` + says("#files", "Paused by "+name))
	b.look("files-paused")
	before := h.Served().Bytes
	h.Heal()
	b.press("#fetch-steer", func() {}) // its place on the page: live updates put a new button there again and again
	b.until(says("#files .status", "On this machine") + ` && ` + says("#files", "and verified") + ` && document.querySelector("#fetch") === null`)
	b.until(says("#history", "verified"))
	t.Logf("%d bytes came before the pause, %d after it", before, h.Served().Bytes-before)

	// Read it once more, from its page and from the list of what is stored.
	b.press("#verify", func() {})
	b.until(says("#fetch-last", "every byte of them was read") + ` && document.querySelector("#verify")`)
	b.look("files-verified")
	b.click(`.side a[href="/storage"]`)
	b.until(says("h1", "Storage") + ` && document.querySelector("#stored td.act button")`)
	b.click(`#stored td.act button`)
	b.until(`location.pathname === "/models/smol" && ` + says("#fetch-last", "every byte of them was read"))

	// Storage: what it takes, and away with it.
	b.click(`.side a[href="/storage"]`)
	b.until(says("h1", "Storage") + ` && ` + says("#stored", "team/SmolLM2-GGUF") + ` && ` + says("#disks .legend", "team/SmolLM2-GGUF"))
	b.look("storage")
	b.click(`#stored td.act a`)
	b.until(says("#stored [data-asking]", "smol stays registered"))
	b.look("storage-ask")
	b.click(`#stored [data-asking] a.btn`)
	b.until(`!document.querySelector("#stored [data-asking]") && ` + says("#stored", "team/SmolLM2-GGUF"))
	b.click(`#stored td.act a`)
	b.until(says("#stored [data-asking]", "smol stays registered"))
	b.click(`#stored [data-asking] button`)
	b.until(says("#stored", "Nothing is stored yet"))
	b.until(`!document.querySelector("#disks").textContent.includes("team/SmolLM2-GGUF")`)

	// A secret is stored once and chosen by name.
	b.click(`.side a[href="/secrets"]`)
	b.until(says("h1", "Secrets") + ` && ` + says("main", "No secret yet"))
	b.write("#secret-name", "hub")
	b.write("#secret-value", "hf_verysecretvalue")
	b.click("#secret-save")
	b.until(says("#flash", "hub is stored") + ` && ` + says("main table", "secret:hub") + ` && !document.body.innerHTML.includes("hf_verysecret")`)
	b.look("secrets")
	b.open(url + "/models/smol/edit")
	b.until(`document.querySelector("#f-auth_token option[value='secret:hub']") && document.querySelector("#preview [value*=Q8_0]")`)
	b.until(says("#preview .plan", "Fits"))
	b.click("#save")
	b.until(`location.pathname === "/models/smol" && ` + says("#flash", "Saved") + ` && ` + says("#files .status", "Not fetched"))
	b.quiet()
}

// TestSlowHub: a Hub that does not answer is waited for in words, and nothing of the form waits with it.
func TestSlowHub(t *testing.T) {
	behind, err := neturl.Parse(hub(t).URL)
	if err != nil {
		t.Fatal(err)
	}
	awake, ended := make(chan struct{}), make(chan struct{})
	to := httputil.NewSingleHostReverseProxy(behind)
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-awake:
			to.ServeHTTP(w, r)
		case <-r.Context().Done():
		case <-ended:
		}
	}))
	t.Cleanup(func() { close(ended); slow.Close() })
	url := serve(t, hubAt(t, slow.URL)...)
	b := open(t)
	b.resize(shapes[0], shapes[0].height)
	firstAccount(b, url)
	b.open(url + "/models/new")
	b.write("#f-source_path", "team/SmolLM2-GGUF")
	b.until(says("#preview", "Asking the Hub") + ` && ` + says("#preview", "You can go on"))
	b.write("#f-model_id", "typed-meanwhile")
	b.look("form-slow")
	close(awake)
	b.until(fmt.Sprintf(`document.querySelectorAll("#preview input[type=radio]").length === 2 && document.querySelector("#f-model_id").value === %q && document.querySelector("#f-model_format").value === "gguf"`, "typed-meanwhile"))
	b.expect("htmx:sendAbort")    // typing a name ends what was being asked,
	b.expect("htmx:afterRequest") // which htmx tells twice
	b.quiet()
}
