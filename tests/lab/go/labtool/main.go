// The lab's own small tools in one static binary, which is also the pause process of its pods. Standard library only.
//
//	labtool init                        PID 1 of the lab's namespaces: brings loopback up, reaps, ends on SIGTERM
//	labtool pause                       PID 1 of a pod: reaps, ends on SIGTERM
//	labtool certs DIR NAME-OR-IP...     a CA, a serving certificate for these names, a service account key
//	labtool targets URL CA TOKEN FILE   keeps the pods' ports in FILE for Prometheus
//	labtool image OUT TAG ROOT [flags]  packs a directory as an image archive for `ctr images import`
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"unsafe"
)

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if name != "pause" && len(args) > 0 {
		name, args = args[0], args[1:]
	}
	var err error
	switch name {
	case "init":
		if err = loopbackUp(); err == nil {
			fmt.Println("up")
			pause()
		}
	case "pause":
		pause()
	case "certs":
		err = certs(args[0], args[1:])
	case "targets":
		err = targets(args[0], args[1], args[2], args[3])
	case "image":
		err = image(args)
	default:
		err = fmt.Errorf("unknown command %q", name)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "labtool %s: %v\n", name, err)
		os.Exit(1)
	}
}

// pause waits for a signal to end and meanwhile takes leave of orphans, as PID 1 has to.
func pause() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}

// loopbackUp sets the interface lo of this network namespace up.
func loopbackUp() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	request := struct { // struct ifreq
		name  [syscall.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}{flags: syscall.IFF_UP | syscall.IFF_RUNNING}
	copy(request.name[:], "lo")
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return fmt.Errorf("set lo up: %w", errno)
	}
	return nil
}
