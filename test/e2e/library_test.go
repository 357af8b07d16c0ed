package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// asInTheGuide calls what the guide's examples call, in their order.
const asInTheGuide = `
import asyncio, sys
from llm_model_manager import *

async def main():
    manager = LLMModelManager()
    listed = {m["model_id"]: m for m in await manager.list_available_models()}
    assert set(listed) == {"tiny-bert", "local-custom-model"}, listed
    assert listed["tiny-bert"]["source_type"] == "huggingface" and listed["tiny-bert"]["status"] == "not_loaded" and listed["tiny-bert"]["device"] == ""
    config = {"model_id": "team/dynamic", "source_type": "local", "source_path": sys.argv[1], "model_format": "gguf", "device_preference": "cpu", "context_length": 512}
    assert await manager.register_model(config, persist=True) is True
    loaded = await manager.load_model("team/dynamic")
    assert loaded.config.model_id == "team/dynamic" and loaded.device == "cpu" and loaded.endpoint["apis"], loaded
    assert type(loaded.model_class) is str and loaded.model_class
    again = await manager.load_model("team/dynamic")
    assert again.instance_id == loaded.instance_id, "a loaded model is left as it is"
    anew = await manager.load_model("team/dynamic", force_reload=True)
    assert anew.instance_id != loaded.instance_id, "force_reload unloads it first"
    assert (await manager.get_model_instance("team/dynamic")).instance_id == anew.instance_id
    assert await manager.unload_model("team/dynamic") is True
    assert await manager.unload_model("team/dynamic") is False
    got = await manager.get_model_configuration("tiny-bert")
    assert (got.revision, got.quantization_bits, got.device_preference, got.required_ram_mb, got.trust_remote_code) == ("main", None, "cpu", 200, False), got.__dict__
    await fails(ModelNotFoundError, manager.get_model_configuration("nobody"))
    await fails(ConfigurationError, manager.register_model({**config, "source_type": "ftp"}))
    await fails(ModelLoadingError, manager.load_model("local-custom-model"))
    await manager.register_model({**config, "required_ram_mb": 1 << 24}, persist=False)
    await fails(ResourceNotAvailableError, manager.load_model("team/dynamic"))

async def fails(kind, call):
    try:
        await call
    except kind as e:
        assert str(e) and e.problem["status"] >= 400
        return
    raise AssertionError(f"{kind.__name__} was expected")

asyncio.run(main())
`

// TestLibraryOfTheGuide runs the module of docs/migration.md, as it stands there, through what the guide's examples do.
func TestLibraryOfTheGuide(t *testing.T) {
	doc, err := os.ReadFile("../../docs/migration.md")
	if err != nil {
		t.Fatal(err)
	}
	module := regexp.MustCompile("(?s)```python\n(\"\"\"The calls of the library.*?)```").FindSubmatch(doc)
	if module == nil {
		t.Fatal("docs/migration.md has no module with the library's calls")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "llm_model_manager.py"), module[1], 0o600); err != nil {
		t.Fatal(err)
	}
	s := setUp(t)
	cmd := exec.CommandContext(t.Context(), "python3", "-c", asInTheGuide, weights(t))
	cmd.Dir = dir
	// The Python of this machine may be set up to use a proxy; the server is on the loopback.
	cmd.Env = append(os.Environ(), "LLMM_SERVER="+s.url, "LLMM_TOKEN="+token, "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, strings.TrimSpace(string(out)))
	}
}
