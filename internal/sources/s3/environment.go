package s3

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"gopkg.in/ini.v1"
)

// environment is what the server was started with: the variables and files that every S3 tool reads. It belongs to the
// admin. A model that names an endpoint of its own gets none of its credentials.
type environment struct {
	endpoint *url.URL // nil: AWS
	problem  string   // why endpoint could not be used
	region   string
	profile  string

	mu   sync.Mutex
	sets map[string]*credentials.Credentials // by profile; kept, because they expire and renew themselves
}

// readEnvironment reads AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION, AWS_PROFILE and the
// profile's endpoint_url and region in AWS_CONFIG_FILE, in the order in which Amazon's own tools let one win.
func readEnvironment() *environment {
	e := &environment{profile: firstOf(os.Getenv("AWS_PROFILE"), os.Getenv("AWS_DEFAULT_PROFILE")), sets: map[string]*credentials.Credentials{}}
	fromFile := readProfile(e.profile)
	e.region = firstOf(os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"), fromFile["region"])
	if text := firstOf(os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"), fromFile["endpoint_url"]); text != "" {
		e.endpoint, e.problem = parseEndpoint(text)
	}
	return e
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v = strings.TrimSpace(v); v != "" {
			return v
		}
	}
	return ""
}

// readProfile returns the plain settings of a profile; nothing when there is no such file or profile.
func readProfile(name string) map[string]string {
	file := os.Getenv("AWS_CONFIG_FILE")
	if file == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil
		}
		file = filepath.Join(home, ".aws", "config")
	}
	config, err := ini.LoadSources(ini.LoadOptions{AllowNestedValues: true, SkipUnrecognizableLines: true}, file)
	if err != nil {
		return nil
	}
	for _, section := range []string{"profile " + firstOf(name, "default"), firstOf(name, "default")} {
		if s, err := config.GetSection(section); err == nil {
			return s.KeysHash()
		}
	}
	return nil
}

// credentials returns the environment's for a profile; "" is the default one. amazon says that they are for AWS itself,
// where the machine may have a role of its own.
func (e *environment) credentials(profile string, amazon bool) *credentials.Credentials {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := profile
	if amazon {
		key += "\x00amazon"
	}
	if c, ok := e.sets[key]; ok {
		return c
	}
	var chain []credentials.Provider
	if profile != "" {
		// Named on purpose: no other credentials in its place.
		chain = append(chain, &credentials.FileAWSCredentials{Profile: profile})
	} else {
		chain = append(chain, &credentials.EnvAWS{}, &patient{Provider: &credentials.FileAWSCredentials{Profile: e.profile}})
		if role := os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE") + os.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") + os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI"); role != "" ||
			amazon && !strings.EqualFold(os.Getenv("AWS_EC2_METADATA_DISABLED"), "true") {
			// No proxy, and soon given up: on a machine that is not Amazon's nobody answers at the metadata's address.
			client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			if role != "" {
				client.Timeout = 10 * time.Second
			}
			chain = append(chain, &patient{Provider: &credentials.IAM{Client: client, Region: e.region}})
		}
	}
	c := credentials.NewChainCredentials(chain)
	if profile != "" {
		c = credentials.New(chain[0]) // an error of a named profile is told; a chain swallows it
	}
	e.sets[key] = c
	return c
}

// patient asks a provider that failed only once in a while: without it every request to a public bucket would wait for
// the machine's metadata service anew.
type patient struct {
	credentials.Provider
	mu     sync.Mutex
	failed time.Time
	err    error
}

const patience = 5 * time.Minute

// Retrieve asks the provider, or repeats its last failure.
func (p *patient) Retrieve() (credentials.Value, error) { return p.RetrieveWithCredContext(nil) }

// RetrieveWithCredContext asks the provider, or repeats its last failure.
func (p *patient) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil && time.Since(p.failed) < patience {
		return credentials.Value{}, p.err
	}
	v, err := p.Provider.RetrieveWithCredContext(cc)
	if p.err = err; err != nil {
		p.failed = time.Now()
		if cc != nil && cc.Context != nil && cc.Context.Err() != nil {
			p.err = nil // the caller gave up, not the provider
		}
	}
	return v, err
}
