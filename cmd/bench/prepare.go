package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// teams own the models: a hundred thousand models are not all one team's.
const teams = 20

var families = []string{"Llama-3", "Mistral", "Qwen2.5", "gemma", "phi", "SmolLM2", "bert", "whisper"}

// modelAt is the i-th model, as a large installation has them: some hundred organisations, all sources and formats.
func modelAt(i int) registry.Model {
	f := families[i%len(families)]
	m := registry.Model{
		ModelID: fmt.Sprintf("org-%03d/%s-%dB-instruct-%06d", i*7919%400, f, i%70+1, i), SourceType: registry.SourceTypes[i%len(registry.SourceTypes)],
		ModelFormat: registry.Formats[i%len(registry.Formats)], Team: fmt.Sprintf("team-%d", i%teams), DevicePreference: registry.DeviceCPU,
		Description: fmt.Sprintf("Instruction-tuned %s for the support desk, evaluation run %d", f, i), Tags: []string{"chat", "eval"}, RequiredRAMMB: int64(500 + i%4000),
	}
	switch m.SourceType {
	case registry.SourceLocal:
		m.SourcePath = fmt.Sprintf("/opt/models/org-%03d/%s-%06d", i*7919%400, f, i)
	case registry.SourceS3:
		m.SourcePath = fmt.Sprintf("s3://models/%s/%06d", f, i)
	case registry.SourceExternal:
		m.SourcePath = fmt.Sprintf("http://engine-%d.internal:8000", i)
	case registry.SourceHuggingFace:
		m.SourcePath = m.ModelID
	case registry.SourceOllama:
		m.SourcePath, m.ModelFormat = m.ModelID, registry.FormatGGUF
	}
	return m.WithDefaults()
}

// fullRegistry returns a data folder in which all models are registered, and the models file of a server on it. The
// models are written by the server's own store while no server runs; the server has then run once, so that accounts
// and the first import of the file are done with.
func (b *bench) fullRegistry(ctx context.Context) (dir, file string, err error) {
	dir, file = filepath.Join(b.dir, "full"), filepath.Join(b.dir, "full.yaml")
	if b.full != "" {
		return dir, file, nil
	}
	b.say("registering %d models", b.models)
	if err := os.RemoveAll(dir); err != nil {
		return "", "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	if err := fill(ctx, filepath.Join(dir, "llmm.db"), b.models); err != nil {
		return "", "", err
	}
	if err := os.WriteFile(file, modelsFile(moderate, "file-"), 0o600); err != nil {
		return "", "", err
	}
	s, err := b.start(ctx, dir, file)
	if err != nil {
		return "", "", err
	}
	if err := s.stop(); err != nil {
		return "", "", err
	}
	b.full = dir
	return dir, file, nil
}

// moderate is how many entries the models file has at first, beside which models are registered and written back.
const moderate = 200

func fill(ctx context.Context, path string, n int) (err error) {
	st, err := store.Open(ctx, store.Options{Path: path})
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := st.Close(); err == nil {
			err = closeErr
		}
	}()
	for i := range teams {
		if err := st.EnsureTeam(ctx, fmt.Sprintf("team-%d", i)); err != nil {
			return err
		}
	}
	const chunk = 10_000
	for from := 0; from < n; from += chunk {
		ms := make([]registry.Model, 0, chunk)
		for i := from; i < min(n, from+chunk); i++ {
			ms = append(ms, modelAt(i))
		}
		if _, _, _, err := st.PutModels(ctx, ms, store.PutOptions{Actor: "bench", Persist: true}); err != nil {
			return err
		}
	}
	return nil
}

// modelsFile is a models file with n entries, whose ids begin with prefix.
func modelsFile(n int, prefix string) []byte {
	var b bytes.Buffer
	b.WriteString("models:\n")
	for i := range n {
		m := modelAt(i)
		fmt.Fprintf(&b, "  - model_id: %q\n    source_type: %s\n    source_path: %q\n    model_format: %s\n    device_preference: cpu\n    required_ram_mb: %d\n    description: %q\n    tags: [chat, eval]\n\n",
			prefix+m.ModelID, m.SourceType, m.SourcePath, m.ModelFormat, m.RequiredRAMMB, m.Description)
	}
	return b.Bytes()
}
