package manager

import (
	"context"
	"sync"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/hw/hwtest"
	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/fake"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// server is an engine that somebody else runs: its models have no process of their own, and only it says what they hold.
type server struct {
	loaders.Loader
	elsewhere bool
	ram, gpu  int64
	asked     chan loaders.LoadSpec
}

func (s *server) Check(ctx context.Context) (loaders.Version, error) {
	v, err := s.Loader.Check(ctx)
	v.Elsewhere = s.elsewhere
	return v, err
}

func (s *server) Load(_ context.Context, spec loaders.LoadSpec, _ func(registry.Progress)) (loaders.Instance, error) {
	s.asked <- spec
	in := &hosted{s: s, id: spec.InstanceID, done: make(chan struct{})}
	spec.Started(in.Handle())
	return in, nil
}

func (s *server) Recover(_ context.Context, h registry.Handle) (loaders.Instance, error) {
	return &hosted{s: s, id: h.InstanceID, done: make(chan struct{})}, nil
}

// hosted is a model in it.
type hosted struct {
	s    *server
	id   string
	stop sync.Once
	done chan struct{}
}

func (h *hosted) Handle() registry.Handle {
	return registry.Handle{Loader: fake.Name, Version: 1, InstanceID: h.id}
}

func (h *hosted) Endpoint() registry.Endpoint {
	return registry.Endpoint{BaseURL: "http://127.0.0.1:11434", Model: h.id}
}
func (h *hosted) Health(context.Context) error { return nil }
func (h *hosted) Done() <-chan struct{}        { return h.done }
func (h *hosted) Err() error                   { return nil }
func (h *hosted) Stop(context.Context) error {
	h.stop.Do(func() { close(h.done) })
	return nil
}

// Held is what it says of itself; see loaders.Holder.
func (h *hosted) Held(context.Context) (ram, gpu int64, err error) { return h.s.ram, h.s.gpu, nil }

// serverRig is a manager with such a server as its engine.
func serverRig(t *testing.T, s *server) *rig {
	t.Helper()
	s.asked = make(chan loaders.LoadSpec, 10)
	r := rigIn(t, t.TempDir(), func(o *Options) {
		s.Loader = o.Loaders[0]
		o.Loaders = []loaders.Loader{s}
	})
	r.start()
	t.Cleanup(func() { r.close(false) })
	return r
}

// TestModelInARunningServer: what a model takes there is gone from what the device has free, and must not be counted as
// promised on top: neither when it is ready nor after a restart.
func TestModelInARunningServer(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	for name, c := range map[string]struct {
		server server
		device registry.Device
		gpus   int
		needs  int64 // GiB of the model there
		next   int64 // GiB of the next one
		spare  int64 // bytes that the plan of the next leaves
	}{
		"on a GPU":       {server{gpu: 10 * gib}, registry.DeviceCUDA, 1, 10, 8, 6 * gib},
		"more than that": {server{gpu: 12 * gib}, registry.DeviceCUDA, 1, 10, 8, 4 * gib},
		"less than that": {server{gpu: 9 * gib}, registry.DeviceCUDA, 1, 10, 8, 6 * gib},
		"over two GPUs":  {server{gpu: 30 * gib}, registry.DeviceCUDA, 2, 30, 8, 1 * gib},
		"in main memory": {server{ram: 10 * gib}, registry.DeviceCPU, 0, 10, 8, 6 * gib},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := serverRig(t, &c.server)
			held := c.server.gpu + c.server.ram
			r.hw.SetHost(registry.Host{RAMTotal: 24 * gib, RAMAvailable: 24*gib - c.server.ram})
			gpus := make([]registry.GPU, c.gpus)
			for i := range gpus {
				gpus[i] = hwtest.GPU(i, 24*gib)
			}
			r.hw.SetGPUs(gpus...)
			sized := func(n int64) func(*registry.Model) {
				return func(m *registry.Model) {
					m.DevicePreference, m.RequiredGPUMemoryMB, m.RequiredRAMMB = c.device, n<<10, n<<10
				}
			}
			r.model("there", nil, sized(c.needs))
			r.end(r.mustLoad("there", LoadOptions{}), registry.OperationSucceeded)
			for i := range c.gpus { // what the server's own process holds, as the driver says it
				r.hw.Take(i, 4711, c.server.gpu/int64(c.gpus))
			}
			check := func(when string) {
				t.Helper()
				var taken int64
				for _, row := range r.ledger.all() {
					taken += row.Taken
				}
				if taken != held {
					t.Errorf("%s %+v are reserved, want %d of it taken", when, r.ledger.all(), held)
				}
				if in, err := r.Instance(r.ctx(), "there"); err != nil || in.Memory.ReportedGPU != c.server.gpu || in.Memory.ReportedRAM != c.server.ram {
					t.Errorf("%s it is shown with %+v, %v", when, in.Memory, err)
				}
				plan, err := r.Plan(r.ctx(), "next", "")
				if err != nil || plan.Verdict != registry.VerdictFits || plan.Spare != c.spare {
					t.Errorf("%s the next one: %s (%s), %v", when, plan.Sentence, plan.Verdict, err)
				}
			}
			r.model("next", nil, sized(c.next))
			check("when it is ready")
			r.close(true)
			r.start()
			r.state("there", registry.RuntimeReady)
			check("after a restart")
		})
	}
}

// TestMovesInARunningServer: what the server says later counts from then on.
func TestMovesInARunningServer(t *testing.T) {
	t.Parallel()
	l := newLedger()
	l.restore(registry.Model{ModelID: "m"}, "i", registry.Plan{Device: "cuda:0", GPUs: []int{0}, Needs: registry.Footprint{Estimated: 10}}, registry.RuntimeReady)
	l.holds("i", 1, 9)
	l.holds("i", 10, 0) // all of it is in main memory now
	l.holds("another", 1, 1)
	if rows := l.all(); len(rows) != 1 || rows[0].Taken != 0 || rows[0].Bytes != 10 {
		t.Errorf("%+v", rows)
	}
}

// TestServerOnAnotherMachine: a model there takes nothing here, whatever it needs and wherever it was asked for; where it
// runs is that server's choice unless somebody made it.
func TestServerOnAnotherMachine(t *testing.T) {
	t.Parallel()
	r := serverRig(t, &server{elsewhere: true, gpu: 1 << 40})
	s, _ := r.Loaders[0].(*server)
	for want, o := range map[registry.Device]struct {
		prefers registry.Device
		asked   registry.Device
	}{
		registry.DeviceAuto: {registry.DeviceAuto, ""}, registry.DeviceCUDA: {registry.DeviceCUDA, ""}, registry.DeviceCPU: {registry.DeviceCUDA, registry.DeviceCPU},
	} {
		id := "to-" + string(want)
		r.model(id, nil, func(m *registry.Model) {
			m.DevicePreference, m.RequiredGPUMemoryMB, m.RequiredRAMMB = o.prefers, 1<<20, 1<<20
		})
		plan, err := r.Plan(r.ctx(), id, "")
		if err != nil || plan.Verdict != registry.VerdictFits || plan.Device != remote {
			t.Errorf("%s: %+v, %v", id, plan, err)
		}
		r.end(r.mustLoad(id, LoadOptions{Device: o.asked}), registry.OperationSucceeded)
		rt := r.state(id, registry.RuntimeReady)
		if spec := <-s.asked; spec.Device != want || len(spec.GPUs) != 0 || rt.Device != remote {
			t.Errorf("%s was loaded on %q, %v: %+v", id, spec.Device, spec.GPUs, rt)
		}
		if rows := r.ledger.all(); len(rows) != 0 {
			t.Errorf("promised here: %+v", rows)
		}
	}
}
