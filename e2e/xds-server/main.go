// Command xds-server is a management server made of go-control-plane's test resources and its server: what anybody who
// writes a control plane in Go builds on. It serves one snapshot after the other; a line on standard input asks for the next.
//
// The test server of that project does the same, but for what the proxy does not have: access logs over gRPC are taken out of
// the listeners, and there are no scoped routes.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"os"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resources "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	conf "github.com/envoyproxy/go-control-plane/pkg/server/config"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"github.com/envoyproxy/go-control-plane/pkg/test"
	"github.com/envoyproxy/go-control-plane/pkg/test/resource/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// callbacks prints what the proxy refuses.
type callbacks struct{ server.CallbackFuncs }

func refused(kind string, detail interface{ GetMessage() string }) {
	fmt.Printf("refused %s: %s\n", kind, detail.GetMessage())
}

// withoutLogs takes access logs over gRPC out of a listener.
func withoutLogs(value types.Resource) {
	for _, chain := range value.(*listener.Listener).GetFilterChains() {
		for _, filter := range chain.GetFilters() {
			manager := &hcm.HttpConnectionManager{}
			if !filter.GetTypedConfig().MessageIs(manager) {
				continue
			}
			if err := filter.GetTypedConfig().UnmarshalTo(manager); err != nil {
				log.Fatal(err)
			}
			manager.AccessLog = nil
			packed, err := anypb.New(manager)
			if err != nil {
				log.Fatal(err)
			}
			filter.ConfigType = &listener.Filter_TypedConfig{TypedConfig: packed}
		}
	}
}

func main() {
	port := flag.Uint("port", 18000, "port of the management server")
	upstream := flag.Uint("upstream", 18080, "port of the endpoints")
	base := flag.Uint("base", 9000, "first port of the listeners")
	mode := flag.String("xds", resource.Ads, "ads, xds, delta or delta-ads")
	tls := flag.Bool("tls", false, "TLS on all listeners, with secrets")
	node := flag.String("node", "test-id", "the proxy's node")
	flag.Parse()

	snapshots := cache.NewSnapshotCache(*mode == resource.Ads, cache.IDHash{}, nil)
	options := []conf.XDSOption{}
	if *mode == resource.Ads {
		options = append(options, sotw.WithOrderedADS())
	}
	told := &callbacks{server.CallbackFuncs{
		StreamRequestFunc: func(_ int64, request *discovery.DiscoveryRequest) error {
			if detail := request.GetErrorDetail(); detail != nil {
				refused(request.GetTypeUrl(), detail)
			}
			return nil
		},
		StreamDeltaRequestFunc: func(_ int64, request *discovery.DeltaDiscoveryRequest) error {
			if detail := request.GetErrorDetail(); detail != nil {
				refused(request.GetTypeUrl(), detail)
			}
			return nil
		},
	}}
	serve := server.NewServer(context.Background(), snapshots, told, options...)
	go test.RunManagementServer(context.Background(), serve, *port)

	wanted := resource.TestSnapshot{
		Xds:              *mode,
		UpstreamPort:     uint32(*upstream),
		BasePort:         uint32(*base),
		NumClusters:      4,
		NumHTTPListeners: 2,
		NumTCPListeners:  2,
		TLS:              *tls,
	}
	lines := bufio.NewScanner(os.Stdin)
	for number := 0; ; number++ {
		wanted.Version = fmt.Sprintf("v%d", number)
		snapshot := wanted.Generate()
		for _, value := range snapshot.GetResources(resources.ListenerType) {
			withoutLogs(value)
		}
		if err := snapshot.Consistent(); err != nil {
			log.Fatalf("inconsistent: %v", err)
		}
		if err := snapshots.SetSnapshot(context.Background(), *node, snapshot); err != nil {
			log.Fatalf("snapshot: %v", err)
		}
		fmt.Printf("serving %s\n", wanted.Version)
		if !lines.Scan() {
			return
		}
	}
}
