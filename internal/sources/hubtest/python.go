package hubtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Python returns an interpreter with the Hub's own client: LLMM_TEST_PYTHON, or the one that scripts/python-tools made.
// Without one the test fails and says what makes it.
func Python(t testing.TB) string {
	t.Helper()
	p, err := FindPython()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// FindPython is Python for programs.
func FindPython() (string, error) {
	if p := os.Getenv("LLMM_TEST_PYTHON"); p != "" {
		if _, err := exec.LookPath(p); err != nil {
			return "", fmt.Errorf("LLMM_TEST_PYTHON: %w", err)
		}
		return p, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	list, err := os.ReadFile(filepath.Join(root, "scripts", "python-tools.txt"))
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	// As scripts/python-tools names it.
	sum := sha256.Sum256(list)
	place := filepath.Join(cache, "llmm", "python-tools", hex.EncodeToString(sum[:])[:16])
	if _, err := os.Stat(filepath.Join(place, "complete")); err != nil {
		return "", errors.New("the Hub's own client for Python is missing; scripts/python-tools fetches it (make test does, too)")
	}
	return filepath.Join(place, "bin", "python"), nil
}

// moduleRoot is the folder of go.mod, from where a test or a program runs upwards.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("run this inside of the repository")
		}
		dir = up
	}
}

// PythonEnv is the environment in which Python's client speaks to this Hub and keeps everything below home: the cache
// is home/hub. Nothing of the machine's own settings, tokens and proxies comes through.
func (h *Hub) PythonEnv(home string) []string {
	env := []string{
		"HF_ENDPOINT=" + h.URL, "HF_HOME=" + home, "HF_HUB_DISABLE_TELEMETRY=1", "HF_HUB_DISABLE_PROGRESS_BARS=1",
		"HF_HUB_DISABLE_UPDATE_CHECK=1", "NO_PROXY=*", "PYTHONDONTWRITEBYTECODE=1",
	}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "HF_") || strings.HasPrefix(name, "HUGGING") || strings.HasSuffix(strings.ToUpper(name), "_PROXY") || strings.HasPrefix(name, "PYTHON") {
			continue
		}
		env = append(env, kv)
	}
	return env
}

// Run runs a Python program against this Hub and returns what it printed on its standard output, without the spaces
// around it. The error of one that fails has the end of its standard error. Env comes on top of PythonEnv(home).
func (h *Hub) Run(t testing.TB, home, program string, env ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, Python(t), "-c", program)
	cmd.Env = append(h.PythonEnv(home), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		text := errs.String()
		return strings.TrimSpace(out.String()), fmt.Errorf("%w: %s", err, text[max(0, len(text)-3000):])
	}
	return strings.TrimSpace(out.String()), nil
}
