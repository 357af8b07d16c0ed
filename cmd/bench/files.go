package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// files measures the import of a models file of 10,000 entries over the API into an empty registry, and the export.
func (b *bench) files(ctx context.Context) error {
	const entries, rounds = 10_000, 3
	doc := modelsFile(entries, "")
	var imports, exports, written []time.Duration
	for i := range rounds {
		b.say("importing %d models, round %d", entries, i+1)
		dir := filepath.Join(b.dir, fmt.Sprintf("import-%d", i))
		file := filepath.Join(dir, "models.yaml")
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(file, modelsFile(2, "first-"), 0o600); err != nil {
			return err
		}
		s, err := b.start(ctx, dir, file)
		if err != nil {
			return err
		}
		one, err := importOnce(ctx, s, doc, entries)
		if stopErr := s.stop(); err == nil {
			err = stopErr
		}
		if err != nil {
			return err
		}
		imports, written, exports = append(imports, one.imported), append(written, one.written), append(exports, one.exported...)
	}
	b.line("import 10,000 models (YAML), median of 3", float64(median(imports)), float64(2*time.Second), seconds, fmt.Sprintf("%s … %s; %.1f MB", ms(imports[0]), ms(imports[rounds-1]), float64(len(doc))/1e6))
	b.fact("  until the models file has them, too", float64(median(written)), seconds, "in the background, after the answer")
	b.line("export 10,000 models, median of 9", float64(median(exports)), float64(time.Second), seconds, fmt.Sprintf("%s … %s", ms(exports[0]), ms(exports[len(exports)-1])))
	return nil
}

// imported is one round.
type imported struct {
	imported, written time.Duration
	exported          []time.Duration
}

func importOnce(ctx context.Context, s *server, doc []byte, entries int) (out imported, err error) {
	var res struct {
		Added  []string `json:"added"`
		Issues []any    `json:"issues"`
	}
	begun := time.Now()
	if err := s.json(ctx, "POST", "/api/v1/import", doc, &res); err != nil {
		return out, err
	}
	out.imported = time.Since(begun)
	if len(res.Added) != entries || len(res.Issues) != 0 {
		return out, fmt.Errorf("%d of %d models were added, with the issues %.300v", len(res.Added), entries, res.Issues)
	}
	for {
		var status struct {
			Pending int `json:"pending"`
		}
		if err := s.json(ctx, "GET", "/api/v1/manifest", nil, &status); err != nil {
			return out, err
		}
		if status.Pending == 0 {
			break
		}
		if time.Since(begun) > 2*time.Minute {
			return out, fmt.Errorf("%d changes are not in the models file after two minutes", status.Pending)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return out, ctx.Err()
		}
	}
	out.written = time.Since(begun)
	for range 3 {
		begun := time.Now()
		yaml, err := s.do(ctx, "GET", "/api/v1/export", nil)
		if err != nil {
			return out, err
		}
		out.exported = append(out.exported, time.Since(begun))
		if len(yaml) < len(doc)/2 {
			return out, fmt.Errorf("the export has only %d bytes", len(yaml))
		}
	}
	return out, nil
}
