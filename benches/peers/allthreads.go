// A call on every thread: Go's AllThreadsSyscall, which there is in programs without C alone
// (CGO_ENABLED=0). Each goroutine has a thread of its own, which waits for a channel or is in a system call
// (`read`); `batch` makes five calls. Arguments and output are those of common.h.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func argument(at, otherwise int) int {
	if len(os.Args) > at {
		if number, err := strconv.Atoi(os.Args[at]); err == nil {
			return number
		}
	}
	return otherwise
}

func main() {
	threads, samples := argument(1, 1), argument(2, 200)
	budget := time.Duration(argument(3, 1000)) * time.Millisecond
	word, calls := "", 1
	if len(os.Args) > 4 {
		word = os.Args[4]
	}
	if word == "batch" {
		calls = 5
	}
	debug.SetMaxThreads(20000)
	debug.SetGCPercent(-1)
	var ready int64
	channel := make(chan int)
	var ends [2]int
	if err := syscall.Pipe(ends[:]); err != nil {
		panic(err)
	}
	for i := 0; i < threads; i++ {
		go func() {
			runtime.LockOSThread()
			atomic.AddInt64(&ready, 1)
			if word == "read" {
				var byte [1]byte
				syscall.Read(ends[0], byte[:])
			}
			<-channel
		}()
	}
	for atomic.LoadInt64(&ready) < int64(threads) {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond)
	runtime.LockOSThread()
	uid := uintptr(os.Getuid())
	one := func() int64 {
		begin := time.Now()
		for i := 0; i < calls; i++ {
			if _, _, errno := syscall.AllThreadsSyscall(syscall.SYS_SETRESUID, uid, uid, uid); errno != 0 {
				panic(errno)
			}
		}
		return time.Since(begin).Nanoseconds()
	}
	start := time.Now()
	one()
	one()
	var line strings.Builder
	line.WriteString("Go:")
	for i := 0; i < samples && (i < 3 || time.Since(start) < budget); i++ {
		fmt.Fprintf(&line, " %d", one())
	}
	fmt.Println(line.String())
	os.Exit(0)
}
