package cli

import (
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/external"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/huggingface"
	"github.com/industriverse/llmmodelmanager/internal/sources/local"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama"
	"github.com/industriverse/llmmodelmanager/internal/sources/s3"
)

// sourceFlags are the flags of serve about where weights come from. What the tools of a source have environment
// variables for (HF_ENDPOINT, HF_HOME, HF_TOKEN, AWS_PROFILE, OLLAMA_MODELS, HTTPS_PROXY …) is read from there.
type sourceFlags struct {
	ModelRoots []string `help:"Folders that local models may be read from. Empty: any." placeholder:"DIR" type:"path"`

	MaxFetches       int   `help:"Models that may be downloaded at once." default:"4"`
	FetchConnections int   `help:"Connections of all downloads together." default:"64"`
	KeepFree         int64 `help:"MiB of a disk that downloads leave free." default:"1024"`

	S3AllowPrivate bool `name:"s3-allow-private" env:"LLMM_S3_ALLOW_PRIVATE" help:"Let models name S3 services in private networks by endpoint_url; AWS_ENDPOINT_URL may lead there anyway."`

	OllamaRegistry string   `help:"Address that answers in place of the Ollama library: a mirror." placeholder:"URL"`
	OllamaInsecure []string `help:"Registries of Ollama models that are spoken to without encryption." placeholder:"HOST"`
	OllamaPrivate  []string `help:"Registries of Ollama models that may be in a private network." placeholder:"HOST"`
}

// open makes the sources, and the fetcher that they share. To add a source, add its line.
func (f *sourceFlags) open(dataDir string, externalHosts []string, externalPrivate bool, log *slog.Logger) ([]sources.Source, *fetch.Fetcher, error) {
	fetcher := fetch.New(fetch.Options{Connections: f.FetchConnections, MinFree: f.KeepFree << 20, Logger: log})
	hub, err := huggingface.New(huggingface.Options{Fetcher: fetcher, Logger: log})
	if err != nil {
		return nil, nil, err
	}
	library, err := ollama.New(ollama.Options{Dir: ollama.Folder(dataDir, os.Getenv), Fetcher: fetcher, Registry: f.OllamaRegistry,
		Insecure: f.OllamaInsecure, Private: f.OllamaPrivate, Key: ollamaKey(), Agent: "llmm/" + Version, Logger: log})
	if err != nil {
		return nil, nil, err
	}
	return []sources.Source{
		hub,
		local.New(local.Options{Roots: f.ModelRoots}),
		s3.New(s3.Options{Dir: filepath.Join(dataDir, "s3"), Fetcher: fetcher, AllowPrivate: f.S3AllowPrivate, Logger: log}),
		library,
		external.New(external.Options{AllowHosts: externalHosts, AllowPrivate: externalPrivate}),
	}, fetcher, nil
}

// disks returns the folders whose file systems are shown: that of the data, that of caches, and those of sources that keep
// their files on yet another one.
func disks(dataDir string, set []sources.Source) []string {
	list := []string{dataDir}
	if cache, err := os.UserCacheDir(); err == nil {
		list = append(list, cache)
	}
	known := map[uint64]bool{}
	for _, folder := range list {
		known[deviceOf(folder)] = true
	}
	for _, src := range set {
		folder := ""
		switch s := src.(type) {
		case interface{ Cache() string }:
			folder = s.Cache()
		case interface{ Folder() string }:
			folder = s.Folder()
		default:
			continue
		}
		if dev := deviceOf(folder); !known[dev] {
			known[dev] = true
			list = append(list, folder)
		}
	}
	return list
}

// deviceOf names the file system that a folder is on, or will be on when it is made.
func deviceOf(folder string) uint64 {
	for {
		info, err := os.Stat(folder)
		if err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				return uint64(st.Dev) //nolint:unconvert // of another type on other systems
			}
			return 0
		}
		if filepath.Dir(folder) == folder {
			return 0
		}
		folder = filepath.Dir(folder)
	}
}

// ollamaKey is the key that Ollama made for this user, "" if it has none.
func ollamaKey() string {
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	key := filepath.Join(home, ".ollama", "id_ed25519")
	if _, err := os.Stat(key); err != nil {
		return ""
	}
	return key
}
