// Evaluates measurements as Argo Rollouts does, with its own package: for `benches/run verdicts`.
//
// Each line of standard input is one rollout: the values that a query returned, one per measurement, separated by commas. The condition and the
// limits are flags. Each line of standard output says how the analysis ended and after how many measurements. What a measurement
// is worth is decided by Argo's package; that the run ends at the first failure beyond the limit is what its controller does with that.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/argoproj/argo-rollouts/pkg/apis/rollouts/v1alpha1"
	"github.com/argoproj/argo-rollouts/utils/evaluate"
	"github.com/sirupsen/logrus"
)

func main() {
	success := flag.String("success-condition", "", "successCondition of the metric")
	failures := flag.Int("failure-limit", 0, "failureLimit of the metric")
	flag.Parse()
	metric := v1alpha1.Metric{Name: "verdicts", SuccessCondition: *success}
	log := logrus.NewEntry(logrus.New())
	lines := bufio.NewScanner(os.Stdin)
	for number := 1; lines.Scan(); number++ {
		failed, measured, end := 0, 0, v1alpha1.AnalysisPhaseSuccessful
		for _, field := range strings.Split(lines.Text(), ",") {
			value, err := strconv.ParseFloat(field, 64)
			if err != nil {
				fmt.Fprintf(os.Stderr, "line %d: %v\n", number, err)
				os.Exit(1)
			}
			measured++
			// a vector, as its Prometheus provider hands it on
			phase, err := evaluate.EvaluateResult([]float64{value}, metric, *log)
			if err != nil {
				fmt.Fprintf(os.Stderr, "line %d: %v\n", number, err)
				os.Exit(1)
			}
			if phase == v1alpha1.AnalysisPhaseFailed {
				failed++
			}
			if phase == v1alpha1.AnalysisPhaseError || failed > *failures {
				end = phase
				break
			}
		}
		fmt.Printf("%s,%d\n", end, measured)
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
