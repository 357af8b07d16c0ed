package browser

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// TestEngines installs nothing: it looks at the engines, tests llama.cpp with the tiny model, and sees on a model's page why
// it was chosen.
func TestEngines(t *testing.T) {
	file := weights(t)
	fake := filepath.Join(t.TempDir(), "fakeengine")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", fake, "../../cmd/fakeengine").CombinedOutput(); err != nil {
		t.Fatalf("build the fake engine: %v\n%s", err, out)
	}
	url := serve(t, "LLMM_FAKE_ENGINE="+fake)
	b := open(t)
	b.resize(shapes[0], shapes[0].height)
	firstAccount(b, url)

	b.click(`.side a[href="/engines"]`)
	b.until(says("h1", "Engines") + ` && document.querySelectorAll("#engines .card").length === 6`)
	b.look("engines-list")
	b.click("#to-llamacpp")
	b.until(`location.pathname === "/engines/llamacpp" && ` + says("#work", "tiny model with random weights"))
	js[any](b, watch)
	b.look("engine")

	// The test runs step by step before one's eyes, and leaves nothing behind.
	b.click("#act-test")
	b.until(says("#work", "llama.cpp works") + ` && ` + says("#work", "random weights as gguf") + ` && ` + says("#work", "Answered") + ` && ` + says("#work", "came back"))
	b.until(says("#history", "Test") + ` && document.querySelector("#act-test")`)
	b.look("engine-tested")
	if !js[bool](b, sameWindow) {
		t.Error("the page was loaded anew while the engine was tested")
	}
	b.open(url + "/models")
	b.until(says("h1", "Models") + ` && !document.querySelector("main").textContent.includes("self-test/")`)

	// A removal asks first, and can be thought better of. Here nothing was installed by this server, or all of it was.
	b.open(url + "/engines/fake")
	b.until(says("h1", "Fake engine"))
	b.click("#act-test")
	b.until(says("#work", "Fake engine works"))

	// A model says why it would be loaded with this engine, and why not with the others.
	b.open(url + "/models/new")
	b.click(`.choices label:has(input[value=local])`)
	b.write("#f-source_path", file+"\t")
	b.until(says("#preview", "Why llama.cpp, and not another engine"))
	b.click("#preview details.why summary")
	b.until(says("#preview details.why[open]", "does not load gguf") + ` && ` + says("#preview details.why[open]", "runs only models that name it"))
	b.look("form-why")
	b.quiet()
}
