// Divides as Multigres does, with its own package: for `benches/run division`.
//
// Each line of standard input is one division: the capacity, then what each user asks for, separated by commas. Each line of standard output has, separated
// by commas: the nanoseconds of one call, what it hands out in all, how many users get nothing, and how many get something else in a second
// call with the same.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/multigres/multigres/go/services/multipooler/connpoolmanager"
)

// What each user gets at least: the floor of a pod.
const minimum = 1

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for number := 1; lines.Scan(); number++ {
		var figures []int64
		for _, field := range strings.Split(lines.Text(), ",") {
			figure, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				fmt.Fprintf(os.Stderr, "line %d: %v\n", number, err)
				os.Exit(1)
			}
			figures = append(figures, figure)
		}
		demands := make(map[string]int64, len(figures)-1)
		for user, demand := range figures[1:] {
			demands[fmt.Sprintf("%05d", user)] = demand
		}
		allocator := connpoolmanager.NewFairShareAllocator(figures[0], minimum)
		start := time.Now()
		allocated := allocator.Allocate(demands)
		nanoseconds := time.Since(start).Nanoseconds()
		again := allocator.Allocate(demands)
		sum, without, others := int64(0), 0, 0
		for user, connections := range allocated {
			sum += connections
			if connections == 0 {
				without++
			}
			if again[user] != connections {
				others++
			}
		}
		fmt.Printf("%d,%d,%d,%d\n", nanoseconds, sum, without, others)
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
