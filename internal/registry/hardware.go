package registry

import "time"

// GPU is one device as NVML shows it. Memory is in bytes, temperature in °C, power in watts.
type GPU struct {
	Index       int          `json:"index"`
	UUID        string       `json:"uuid"`
	Name        string       `json:"name"`
	MemoryTotal int64        `json:"memory_total"`
	MemoryUsed  int64        `json:"memory_used"`
	MemoryFree  int64        `json:"memory_free"`
	Utilization int          `json:"utilization"` // percent of the last sample period with a kernel running; -1 unknown
	Temperature int          `json:"temperature"` // -1 unknown
	Power       float64      `json:"power"`       // -1 unknown
	PowerLimit  float64      `json:"power_limit,omitempty"`
	MIG         bool         `json:"mig,omitempty"`     // partitioned, or a partition
	Usable      bool         `json:"usable"`            // models may be loaded on it
	Problem     string       `json:"problem,omitempty"` // why it is not, or what could not be read
	Processes   []GPUProcess `json:"processes,omitempty"`
}

// GPUProcess is a process that holds memory on a GPU. Bytes is -1 where the driver does not tell (containers).
type GPUProcess struct {
	PID   int    `json:"pid"`
	Name  string `json:"name,omitempty"`
	Bytes int64  `json:"bytes"`
}

// Host is the machine without its GPUs. Memory is in bytes.
type Host struct {
	RAMTotal     int64   `json:"ram_total"`              // what this process may use at most: the cgroup's limit if that is lower
	RAMAvailable int64   `json:"ram_available"`          // as the kernel counts it, and below the cgroup's limit
	CgroupLimit  int64   `json:"cgroup_limit,omitempty"` // 0 when there is none
	CPUs         int     `json:"cpus"`                   // that this process may use
	CPUPercent   float64 `json:"cpu_percent"`            // 0 … 100 of all CPUs
	Disks        []Disk  `json:"disks,omitempty"`
}

// Disk is a file system that holds models. In bytes.
type Disk struct {
	Path  string `json:"path"`
	Total int64  `json:"total"`
	Free  int64  `json:"free"`
}

// Sample is one reading of the hardware.
type Sample struct {
	At         time.Time `json:"at"`
	GPUs       []GPU     `json:"gpus"`
	GPUProblem string    `json:"gpu_problem,omitempty"` // why there are none, when that is a fault: driver mismatch, lost
	Driver     string    `json:"driver,omitempty"`
	CUDA       string    `json:"cuda,omitempty"`
	Host       Host      `json:"host"`
}

// Reservation is bytes promised on a device to an instance.
type Reservation struct {
	ModelID    string       `json:"model_id"`
	InstanceID string       `json:"instance_id"`
	Device     string       `json:"device"` // cpu, cuda:0
	Bytes      int64        `json:"bytes"`
	Taken      int64        `json:"taken"` // of these, what the process was seen to hold already
	PID        int          `json:"pid,omitempty"`
	State      RuntimeState `json:"state"`
	Pinned     bool         `json:"pinned,omitempty"`
	Team       string       `json:"team,omitempty"`
	Priority   int          `json:"priority,omitempty"`
	LastUsedAt time.Time    `json:"last_used_at,omitzero"`
	Active     int          `json:"active,omitempty"` // requests being answered now
}

// ServiceHealth is how a service elsewhere has answered since its model was loaded.
type ServiceHealth struct {
	Requests  int64     `json:"requests"` // of users
	Errors    int64     `json:"errors"`
	LatencyMS float64   `json:"latency_ms,omitempty"` // until an answer began: a moving average of those that were no errors
	LastError string    `json:"last_error,omitempty"`
	AwaySince time.Time `json:"away_since,omitzero"`
	CheckedAt time.Time `json:"checked_at,omitzero"` // when it was last asked without a request of a user
}

// Resources is what GET /api/v1/resources answers: the newest sample and who holds what.
type Resources struct {
	Sample
	Reservations []Reservation `json:"reservations"`
}
