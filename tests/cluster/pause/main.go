// Command pause holds namespaces: of a pod, and of a sandbox of the test cluster. It reaps what is orphaned to it, and
// ends on SIGTERM or SIGINT. Its arguments say whose it is, for those who read the process list.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	reap() // what ended before anybody listened
	for got := range signals {
		if got != syscall.SIGCHLD {
			return
		}
		reap()
	}
}

func reap() {
	for {
		if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 && err != syscall.EINTR {
			return
		}
	}
}
