// Package loaders holds the contract between the manager and the programs that run models. One package below this
// one drives one engine; internal/loaders/loadertest is the suite that each of them, the fake included, passes.
package loaders

import (
	"context"
	"net/http"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Info says what a loader can do. It is pure: it does not look at the host.
type Info struct {
	Name         string // as in a model's engine field
	Title        string // for people: "llama.cpp"
	Sources      []registry.SourceType
	Formats      []registry.Format
	Devices      []registry.Device // DeviceCPU, DeviceCUDA
	APIs         []registry.API
	Params       []Param // the custom_loader_params it understands; others are refused
	CanSleep     bool
	Experimental bool
	OnlyNamed    bool   // auto never chooses it
	HowToGet     string // one line for people: how to install the engine
	// LogNoise are beginnings of log lines that the engine writes for us and not for people; they are not shown.
	LogNoise []string
}

// Param is one entry of custom_loader_params that a loader understands.
type Param struct {
	Name string
	Kind registry.FieldKind // KindString, KindInt, KindBool, KindEnum, KindStrings
	Opts []string           // with KindEnum
	Help string
}

// Version is an engine as it was found on this host.
type Version struct {
	Version string            // as the engine prints it
	Path    string            // the program, or the address of a service
	Devices []registry.Device // what this build can use
	NoCUDA  string            // why CUDA is not among them and what would change that, as sentences; often ""
	// Elsewhere: it runs on another machine, so that models take no memory of this one.
	Elsewhere bool
}

// LoadSpec is all that a loader needs to load one model.
type LoadSpec struct {
	Model      registry.Model
	Artifact   registry.Artifact
	InstanceID string          // unique for all time; tags the process, its log and its folder
	Device     registry.Device // DeviceCPU or DeviceCUDA, decided by the planner; what was asked for, perhaps auto, of an engine elsewhere
	GPUs       []int           // NVML indices, with DeviceCUDA
	GPUUUIDs   []string        // the same devices by UUID, for CUDA_VISIBLE_DEVICES
	Reserved   int64           // bytes promised to it, on all of its devices together
	DeviceSize int64           // bytes of the smallest of GPUs; 0 on the CPU
	Context    int             // tokens of context the plan reserved for; 0 leaves it to the engine
	LogPath    string          // the engine's stdout and stderr go here, appended
	Dir        string          // an empty folder of this instance's own, removed by the manager afterwards
	// Started is called at once after the engine process exists and before it is waited for, so that the manager
	// can store the handle and find the process after a crash of its own. It must not be nil.
	Started func(registry.Handle)
}

// Loader drives one engine. Implementations are safe for concurrent use.
type Loader interface {
	Info() Info

	// Check reports the engine found on this host. CodeUnavailable with a message that says how to get it when there
	// is none.
	Check(ctx context.Context) (Version, error)

	// Load returns when the model answers. report is called from one goroutine at a time, with stages in order (from
	// StageEngine to StageWarmup) and Done never shrinking within a stage; it does not block. There is no time-out
	// of its own: ctx ends it. On error or when ctx is cancelled nothing is left: no process, no memory, no port,
	// no socket; only the log stays. Errors are CodeLoadingFailed with a Failure, CodeInvalid for a
	// parameter it does not understand (before anything is started), CodeUnsupported with a Failure for what the engine cannot
	// do on this device (likewise), or CodeUnavailable when the engine is missing.
	Load(ctx context.Context, spec LoadSpec, report func(registry.Progress)) (Instance, error)
}

// Instance is a loaded model.
type Instance interface {
	Handle() registry.Handle
	Endpoint() registry.Endpoint

	// Health asks the engine whether it still answers.
	Health(ctx context.Context) error

	// Done is closed when the instance has ended, for whatever reason; Err then says why, nil after Stop.
	Done() <-chan struct{}
	Err() error

	// Stop ends the instance and returns when nothing of it is left. It is idempotent and may be called at any time,
	// also by several at once. It asks first and kills when ctx ends, and returns nil in both cases; it returns
	// an error only if something is left.
	Stop(ctx context.Context) error
}

// Recoverer is a loader whose engines outlive the manager.
type Recoverer interface {
	// Recover returns the instance that the handle belongs to. CodeNotFound if it no longer runs or is another process
	// that got the same number.
	Recover(ctx context.Context, h registry.Handle) (Instance, error)
}

// Reconnector is a loader of instances that are no process of this machine: the model is needed to take one up again, since
// the handle holds no secret.
type Reconnector interface {
	// Reconnect returns the instance that the handle belongs to. CodeNotFound if it is not of the model as it is now.
	Reconnect(ctx context.Context, h registry.Handle, m registry.Model) (Instance, error)
}

// Transporter is an instance that is reached in its own way: the gateway sends its requests through Transport.
type Transporter interface {
	Transport() http.RoundTripper
}

// Observer is an instance elsewhere that watches how it answers.
type Observer interface {
	Observe() registry.ServiceHealth
}

// Meter is an instance whose engine may tell what it is doing.
type Meter interface {
	// Activity asks the engine. CodeUnsupported if it never tells; CodeUnavailable if it does not answer, or not so that it
	// can be read.
	Activity(ctx context.Context) (registry.Activity, error)
}

// Holder is an instance whose engine says itself how much memory the model takes. For one in a server that somebody else
// runs it is all that can be known.
type Holder interface {
	// Held returns bytes of main memory and of GPUs: weights, cache and buffers. CodeUnavailable if it does not answer.
	Held(ctx context.Context) (ram, gpu int64, err error)
}

// Sleeper is an instance that can keep its weights in host memory.
type Sleeper interface {
	Sleep(ctx context.Context) error
	Wake(ctx context.Context) error
}

// Estimator is a loader that knows what a model will take. Without one, or with an empty Basis, the planner uses the
// artifact's bytes.
type Estimator interface {
	// Estimate is pure and quick: it uses the facts of the artifact and the model's settings only.
	Estimate(m registry.Model, a registry.Artifact, device registry.Device) registry.Footprint
}

// Awake is a Sleeper that may not be able to sleep after all.
type Awake interface {
	// WhyAwake says why this instance cannot sleep and what would change that, as one sentence; "" if it can sleep.
	WhyAwake() string
}

// Judge is a loader that can tell before a load whether its engine would take a model.
type Judge interface {
	// Judge says what speaks against loading the model on this kind of device (DeviceCPU or DeviceCUDA) with the engine
	// that v describes. f is what is known of the files, often nothing. It is quick; the zero Objection means that nothing
	// speaks against it as far as is known.
	Judge(m registry.Model, f registry.Facts, device registry.Device, v Version) Objection
}

// Narrower is a loader whose engine cannot run every model on every device that it can use.
type Narrower interface {
	// Narrow returns v with the devices that the model can run on, and NoCUDA where CUDA is not among them. It is quick.
	Narrow(m registry.Model, v Version) Version
}

// Objection is what speaks against loading a model with an engine.
type Objection struct {
	Why string // completes "Ollama …", for example "cannot convert the architecture X"; "" nothing
	// Sure is false where the engine may still load it: such a one is taken when there is no better.
	Sure bool
	// Hint is what would work, as sentences. With it a sure objection ends a load before anything is fetched or started.
	Hint string
}

// Parts is a loader whose engine is several programs.
type Parts interface {
	// Parts looks at each of them. It may start them to ask their versions, within ctx.
	Parts(ctx context.Context) []registry.EnginePart
}

// Installer is a loader whose engine this program can install by itself, as dir/NAME/VERSION.
type Installer interface {
	// Offered is the version that Install brings.
	Offered() string

	// Install makes the engine usable, below dir. It is resumable and leaves either a working engine or none. Progress is
	// StageFetch, StageVerify, StageEngine and StageReady.
	Install(ctx context.Context, dir string, report func(registry.Progress)) error
}

// Trier is a loader that wants its own settings for the tiny model of a self-test.
type Trier interface {
	// TrialParams are custom_loader_params that make a first answer come soon.
	TrialParams() map[string]any
}

// Borrower is a loader whose engine, as Install makes it, needs files of another engine that was installed.
type Borrower interface {
	// Borrows reports whether it needs what is below folder.
	Borrows(folder string) bool
}

// Authenticator is an instance whose engine answers only to those who know its key, so that other users of the
// machine cannot use it behind the gateway's back.
type Authenticator interface {
	// Authorization returns the value of the Authorization header. It is a secret: never logged, shown or stored.
	Authorization() string
}
