package llamacpp

import "context"

// InstallFrom installs from an archive of the test's own, whose hash it gives.
func InstallFrom(ctx context.Context, dir, archive, sha256 string) error {
	return (&installer{dir: dir, work: dir + "/build", tag: "installtest-from", archive: archive, sha256: sha256}).run(ctx)
}
