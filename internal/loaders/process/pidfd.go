package process

import (
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pidfd refers to one process for good: a signal through it never hits another that got the same number.
type pidfd struct {
	id   Identity
	file *os.File // nil on a kernel without pidfds (before 5.10)
}

// openPidfd opens the process with this identity; ErrGone if it is another by now.
func openPidfd(id Identity) (*pidfd, error) {
	if id.BootID != BootID() || id.PID <= 0 {
		return nil, ErrGone
	}
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	var f *os.File
	switch {
	case err == nil:
		f = os.NewFile(uintptr(fd), "pidfd")
	case errors.Is(err, unix.ESRCH):
		return nil, ErrGone
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM):
		// An old kernel or a strict sandbox: fall back to checking the start ticks before each signal.
	default:
		return nil, err
	}
	// Checked after opening: if the ticks fit now, the descriptor is that process's.
	st, err := readStat(id.PID)
	if err != nil || st.start != id.StartTicks {
		if f != nil {
			_ = f.Close()
		}
		return nil, ErrGone
	}
	return &pidfd{id: id, file: f}, nil
}

func (p *pidfd) close() {
	if p.file != nil {
		_ = p.file.Close()
	}
}

// signal sends sig; ErrGone if the process has ended.
func (p *pidfd) signal(sig syscall.Signal) error {
	var err error
	if p.file == nil {
		if !p.id.Alive() {
			return ErrGone
		}
		err = unix.Kill(p.id.PID, sig)
	} else {
		rc, cerr := p.file.SyscallConn()
		if cerr != nil {
			return cerr
		}
		if cerr = rc.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); cerr != nil {
			return cerr
		}
	}
	if errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	return err
}

// wait returns when the process has ended (a zombie has). It costs no thread: the runtime's poller watches the
// descriptor. It works for processes that are not our children.
func (p *pidfd) wait() {
	if p.file != nil {
		if rc, err := p.file.SyscallConn(); err == nil {
			err = rc.Read(func(fd uintptr) bool {
				fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				n, err := unix.Poll(fds, 0)
				return err == nil && n > 0
			})
			if err == nil {
				return
			}
		}
	}
	for p.id.Alive() {
		time.Sleep(pollGone)
	}
}
