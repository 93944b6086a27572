package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"sort"
	"strconv"
	"time"
)

// pod has what Prometheus' own discovery (role: pod) reads, as far as the configuration that ships uses it.
type pod struct {
	Metadata struct {
		UID, Name, Namespace string
		Labels               map[string]string
	}
	Spec   struct{ InitContainers, Containers []container }
	Status struct{ Phase, PodIP string }
}

type container struct {
	Name  string
	Ports []struct {
		Name          string
		ContainerPort int
	}
}

// unfit is what no name of a label may have: Prometheus writes an underscore in its place.
var unfit = regexp.MustCompile(`[^a-zA-Z0-9_]`)

type target struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// targets watches all pods and keeps a file for Prometheus' file_sd_configs with one target for each named container port, init
// containers too, with the labels of its Kubernetes discovery. (Debian's Prometheus is built without that discovery.)
func targets(server, caFile, token, out string) error {
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	for {
		err := watchPods(client, server, token, out)
		fmt.Fprintln(os.Stderr, "watch of pods ended, starting again:", err)
		time.Sleep(time.Second)
	}
}

func watchPods(client *http.Client, server, token, out string) error {
	// without a resourceVersion the watch begins with one ADDED for each pod there is
	request, err := http.NewRequest("GET", server+"/api/v1/pods?watch=1", nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	type event struct {
		Type   string
		Object pod
	}
	events, failed := make(chan event), make(chan error, 1)
	go func() {
		decoder := json.NewDecoder(response.Body)
		for {
			var e event
			if err := decoder.Decode(&e); err != nil {
				failed <- err
				return
			}
			events <- e
		}
	}()
	pods, changed := map[string]pod{}, time.NewTimer(0)
	for {
		select {
		case e := <-events:
			switch e.Type {
			case "ADDED", "MODIFIED":
				pods[e.Object.Metadata.UID] = e.Object
			case "DELETED":
				delete(pods, e.Object.Metadata.UID)
			default:
				return fmt.Errorf("watch event %s", e.Type)
			}
			changed.Reset(100 * time.Millisecond)
		case <-changed.C:
			if err := writeTargets(pods, out); err != nil {
				return err
			}
		case err := <-failed:
			if errors.Is(err, io.EOF) {
				err = errors.New("the server closed it")
			}
			return err
		}
	}
}

func writeTargets(pods map[string]pod, out string) error {
	list := []target{}
	for _, p := range pods {
		if p.Status.PodIP == "" {
			continue
		}
		for _, group := range []struct {
			containers []container
			init       string
		}{{p.Spec.InitContainers, "true"}, {p.Spec.Containers, "false"}} {
			for _, c := range group.containers {
				for _, port := range c.Ports {
					labels := map[string]string{
						"__meta_kubernetes_namespace":                 p.Metadata.Namespace,
						"__meta_kubernetes_pod_name":                  p.Metadata.Name,
						"__meta_kubernetes_pod_uid":                   p.Metadata.UID,
						"__meta_kubernetes_pod_phase":                 p.Status.Phase,
						"__meta_kubernetes_pod_container_name":        c.Name,
						"__meta_kubernetes_pod_container_init":        group.init,
						"__meta_kubernetes_pod_container_port_name":   port.Name,
						"__meta_kubernetes_pod_container_port_number": strconv.Itoa(port.ContainerPort),
					}
					for name, value := range p.Metadata.Labels {
						labels["__meta_kubernetes_pod_label_"+unfit.ReplaceAllString(name, "_")] = value
					}
					list = append(list, target{[]string{net.JoinHostPort(p.Status.PodIP, strconv.Itoa(port.ContainerPort))}, labels})
				}
			}
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Targets[0] < list[j].Targets[0] })
	content, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if err := os.WriteFile(out+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(out+".new", out)
}
