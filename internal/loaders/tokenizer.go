package loaders

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TokenizerPath returns where a model's tokenizer lies for engines that are given it: a path of this machine, such as a
// folder to which another repository's was fetched, or a folder within the artifact's own, root. "" is the artifact's own,
// which the model's own name says, too. CodeLoadingFailed with FailureMissingFile when nothing is there.
func TokenizerPath(spec LoadSpec, root string) (string, error) {
	p := spec.Model.TokenizerPath
	if p == "" || p == spec.Model.SourcePath {
		return "", nil
	}
	if !filepath.IsAbs(p) {
		if p = filepath.FromSlash(p); !filepath.IsLocal(p) {
			p = ""
		}
		p = filepath.Join(root, p)
	}
	if _, err := os.Stat(p); err != nil {
		f := &registry.Failure{Kind: registry.FailureMissingFile, Msg: fmt.Sprintf("There is no tokenizer at %s, where tokenizer_path says", p),
			Hint: "Correct tokenizer_path: a folder of this machine, or one within the model's own."}
		return "", &registry.Error{Code: registry.CodeLoadingFailed, Op: "loaders.TokenizerPath", Msg: f.Msg, Failure: f, Err: err}
	}
	return p, nil
}

// ArtifactFolder returns the folder that an artifact's files are listed from: its path, or for a file the folder that it
// was chosen in, which may be further up than the one it lies in.
func ArtifactFolder(a registry.Artifact) string {
	if fi, err := os.Stat(a.Path); err == nil && fi.IsDir() {
		return a.Path
	}
	at, longest := filepath.ToSlash(a.Path), ""
	for _, f := range a.Files {
		if strings.HasSuffix(at, "/"+f.Path) && len(f.Path) > len(longest) {
			longest = f.Path
		}
	}
	if longest == "" {
		return filepath.Dir(a.Path)
	}
	return filepath.FromSlash(strings.TrimSuffix(at, "/"+longest))
}
