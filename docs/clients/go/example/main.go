// Asks for each line of stdin, "unit TAB timeout in ms TAB context TAB candidate TAB candidate ...", all but the first
// two in JSON, and prints where the scores came from and the scores:  go run ./example http://127.0.0.1:8000 0.02
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"retort"
)

func main() {
	defaultPCTR, err := strconv.ParseFloat(os.Args[2], 64)
	if err != nil {
		log.Fatal(err)
	}
	client := retort.New(os.Args[1], defaultPCTR)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		parts := strings.Split(lines.Text(), "\t")
		milliseconds, err := strconv.Atoi(parts[1])
		if err != nil {
			log.Fatal(err)
		}
		var candidates []json.RawMessage
		for _, candidate := range parts[3:] {
			candidates = append(candidates, json.RawMessage(candidate))
		}
		timeout := time.Duration(milliseconds) * time.Millisecond
		scores := retort.Score(client, parts[0], json.RawMessage(parts[2]), candidates, timeout)
		fmt.Print(scores.Source)
		for _, pctr := range scores.PCTR {
			fmt.Print(" ", pctr)
		}
		fmt.Println()
	}
}
