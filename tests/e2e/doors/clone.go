// Clones a file with FICLONE from several goroutines; Go makes its system calls itself.
//
//	clone SOURCE TARGET_PREFIX GOROUTINES CLONES
package main

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
)

const ficlone = 0x40049409

func cloneOne(source *os.File, path string) bool {
	target, err := os.Create(path)
	if err != nil {
		return false
	}
	defer target.Close()
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, target.Fd(), ficlone, source.Fd())
	return errno == 0
}

func main() {
	goroutines, _ := strconv.Atoi(os.Args[3])
	clones, _ := strconv.Atoi(os.Args[4])
	var failures int64
	var all sync.WaitGroup
	for i := 0; i < goroutines; i++ {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			source, err := os.Open(os.Args[1])
			if err != nil {
				atomic.AddInt64(&failures, int64(clones))
				return
			}
			defer source.Close()
			for n := 0; n < clones; n++ {
				if !cloneOne(source, fmt.Sprintf("%s.%d.%d", os.Args[2], i, n)) {
					atomic.AddInt64(&failures, 1)
				}
			}
		}(i)
	}
	all.Wait()
	fmt.Printf("failures %d\n", failures)
	if failures != 0 {
		os.Exit(1)
	}
}
