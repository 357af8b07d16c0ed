package install

import (
	"os"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Environment is ours, for an index of packages, proxies and compilers that the user has set, without what is ours alone,
// what looks like a secret and the variables in drop, and with those in add.
func Environment(drop []string, add ...string) []string {
	var out []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "LLMM_") && !registry.IsSecretName(name) && !slices.Contains(drop, name) {
			out = append(out, kv)
		}
	}
	return append(out, add...)
}

// PythonEnvironment is an Environment for pip and uv, which keeps what it downloads in cache. uv does not read pip's
// settings, so that the index of those is handed on.
func PythonEnvironment(cache string) []string {
	env := slices.DeleteFunc(Environment([]string{"VIRTUAL_ENV"}), func(kv string) bool { return strings.HasPrefix(kv, "PYTHON") })
	if index := os.Getenv("PIP_INDEX_URL"); index != "" && os.Getenv("UV_DEFAULT_INDEX") == "" {
		env = append(env, "UV_DEFAULT_INDEX="+index)
	}
	return append(env, "PYTHONUNBUFFERED=1", "PIP_NO_INPUT=1", "NO_COLOR=1", "UV_PYTHON_DOWNLOADS=never", "UV_HTTP_TIMEOUT=180", "UV_CACHE_DIR="+cache)
}
