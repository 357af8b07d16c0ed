package llamacpp

import (
	"context"

	"github.com/industriverse/llmmodelmanager/internal/loaders/install"
)

// InstallFrom installs from an archive of the test's own, whose hash it gives.
func InstallFrom(ctx context.Context, dir, archive, sha256 string) error {
	return (&installer{Job: install.New(Name, "llama.cpp", "installtest-from"), dir: dir, work: dir + "/build", archive: archive, sha256: sha256}).run(ctx)
}
