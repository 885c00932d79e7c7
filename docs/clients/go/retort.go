// Package retort asks a Retort service for click probabilities within an auction: one total timeout, no retry, and an
// answer of one's own where the service has none. Safe for use by many goroutines; make one Client and keep it.
package retort

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"
)

// Where scores come from. Everything but Service is a fallback: every score is the client's default then.
const (
	Service     = "service"
	TimedOut    = "timeout"     // no whole answer in time
	Overloaded  = "overloaded"  // 429: asking again within this auction would make it worse
	Refused     = "refused"     // any other status: look at the "code" of the answer when you develop
	Unreachable = "unreachable" // no connection, or it broke
	Invalid     = "invalid"     // an answer that does not fit the question
)

// Scores has one click probability for each candidate, in their order, always.
type Scores struct {
	PCTR   []float64
	Source string // of the constants above; count them in your metrics
}

// Client keeps connections open from one auction to the next.
type Client struct {
	url         string
	defaultPCTR float64
	http        *http.Client
}

// New makes a client of a service, say "http://retort:8000". defaultPCTR is what you bid on without the service:
// yesterday's mean click rate, say.
func New(url string, defaultPCTR float64) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	transport.MaxIdleConnsPerHost = 64           // Go's default of 2 would open a connection for most requests
	transport.IdleConnTimeout = 60 * time.Second // less than the service's --keep-alive-seconds
	return &Client{url + "/predict", defaultPCTR, &http.Client{Transport: transport}}
}

// Score returns within the timeout, whatever happens. unitID, the user or device, is what keeps an experiment's arm:
// never leave it empty. context and each of candidates become JSON objects: field name -> raw value.
func Score[T any](c *Client, unitID string, context any, candidates []T, timeout time.Duration) Scores {
	pctr, source := ask(c, unitID, context, candidates, timeout)
	if source != Service {
		pctr = make([]float64, len(candidates))
		for i := range pctr {
			pctr[i] = c.defaultPCTR
		}
	}
	return Scores{pctr, source}
}

func ask[T any](c *Client, unitID string, features any, candidates []T, timeout time.Duration) ([]float64, string) {
	body, err := json.Marshal(map[string]any{
		"unit_id":    unitID,
		"context":    features,
		"candidates": candidates,
		// The service does not begin what it cannot finish by then; the rest of the time is the network's.
		"deadline_ms": 0.8 * float64(timeout) / float64(time.Millisecond),
	})
	if err != nil {
		return nil, Invalid
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout) // connect, send, wait and read, all together
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return nil, Invalid
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		return nil, reason(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20)) // whole, or the connection is not used again
	switch {
	case err != nil:
		return nil, reason(err)
	case response.StatusCode == http.StatusTooManyRequests:
		return nil, Overloaded
	case response.StatusCode != http.StatusOK:
		return nil, Refused
	}
	var answer struct {
		PCTR []float64 `json:"pctr"`
	}
	if json.Unmarshal(text, &answer) != nil || len(answer.PCTR) != len(candidates) {
		return nil, Invalid
	}
	return answer.PCTR, Service
}

func reason(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return TimedOut
	}
	return Unreachable
}
