package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/huggingface"
)

// asFetcher as the only argument makes this program fetch once and say how long it took: a process of its own, so that
// the system says what it used.
const asFetcher = "fetch-as-child"

// attempts is how often a client that gives up is started anew before the measurement is given up.
const attempts = 500

// ours is this program's own child with the source of the product.
func ours(self string) func(context.Context, string) ([]*exec.Cmd, error) {
	return func(ctx context.Context, _ string) ([]*exec.Cmd, error) {
		cmd := exec.CommandContext(ctx, self, asFetcher)
		cmd.Env = plainEnv()
		return []*exec.Cmd{cmd}, nil
	}
}

// fetchAsChild is what the child does: what the server does of a model's load before the engine. HF_ENDPOINT and HF_HOME
// say from where and to where.
func fetchAsChild(out io.Writer) error {
	ctx := context.Background() // it is ended with its process
	source, err := huggingface.New(huggingface.Options{})
	if err != nil {
		return err
	}
	began := time.Now()
	for tries := 1; ; tries++ {
		err := fetchModel(ctx, source)
		if err == nil {
			return json.NewEncoder(out).Encode(map[string]any{"seconds": time.Since(began).Seconds(), "tries": tries})
		}
		if tries == attempts {
			return err
		}
	}
}

func fetchModel(ctx context.Context, source *huggingface.Source) error {
	s, err := source.Resolve(ctx, sources.Ref{Path: fetchRepo, Revision: "main", Format: registry.FormatSafetensors})
	if err != nil {
		return err
	}
	_, err = source.Fetch(ctx, s, func(registry.Progress) {})
	return err
}

// theirs is the Hub's own client. Where it gives up it is called anew, as its message says; what it has finished by
// then it does not fetch again.
func theirs(python string, env ...string) func(context.Context, string) ([]*exec.Cmd, error) {
	program := fmt.Sprintf(`
import json, time
from huggingface_hub import snapshot_download
began, tries = time.monotonic(), 0
while True:
    tries += 1
    try:
        snapshot_download(%q)
        break
    except Exception:
        if tries == %d: raise
print(json.dumps({"seconds": time.monotonic() - began, "tries": tries}))
`, fetchRepo, attempts)
	return func(ctx context.Context, _ string) ([]*exec.Cmd, error) {
		cmd := exec.CommandContext(ctx, python, "-c", program)
		cmd.Env = append(plainEnv(), "HF_HUB_DISABLE_TELEMETRY=1", "HF_HUB_DISABLE_UPDATE_CHECK=1", "HF_HUB_DISABLE_PROGRESS_BARS=1")
		cmd.Env = append(cmd.Env, env...)
		return []*exec.Cmd{cmd}, nil
	}
}

// plain fetches ranges with several curls side by side, each range into a file of its own: nothing is put together and
// nothing is verified.
func plain(hub, served string) func(context.Context, string) ([]*exec.Cmd, error) {
	const span = 64 << 20
	return func(ctx context.Context, home string) ([]*exec.Cmd, error) {
		shards, err := filepath.Glob(filepath.Join(served, filepath.FromSlash(fetchRepo), "*.safetensors"))
		if err != nil {
			return nil, err
		}
		configs := make([]strings.Builder, curls)
		n := 0
		for _, shard := range shards {
			fi, err := os.Stat(shard)
			if err != nil {
				return nil, err
			}
			for from := int64(0); from < fi.Size(); from += span {
				c := &configs[n%curls]
				if c.Len() > 0 {
					c.WriteString("next\n")
				}
				fmt.Fprintf(c, "silent\nshow-error\nfail\nlocation\nurl = \"%s/%s/resolve/main/%s\"\nrange = %d-%d\noutput = %q\n", hub, fetchRepo,
					filepath.Base(shard), from, min(from+span, fi.Size())-1, filepath.Join(home, fmt.Sprintf("range-%d", n)))
				n++
			}
		}
		var cmds []*exec.Cmd
		for i := range configs {
			if configs[i].Len() == 0 {
				continue
			}
			cmd := exec.CommandContext(ctx, "curl", "--config", "-")
			cmd.Stdin, cmd.Env = strings.NewReader(configs[i].String()), plainEnv()
			cmds = append(cmds, cmd)
		}
		return cmds, nil
	}
}

// plainEnv is the environment without what would change how a client fetches.
func plainEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return strings.HasPrefix(name, "HF_") || strings.HasPrefix(name, "HUGGING") || strings.HasPrefix(name, "TRANSFORMERS_") ||
			strings.HasSuffix(strings.ToUpper(name), "_PROXY")
	})
}
