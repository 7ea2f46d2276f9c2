package v1alpha1_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

func TestServiceIn(t *testing.T) {
	for uri, want := range map[string]*v1alpha1.ServiceRef{
		"http://web.shop.svc/":                    {Name: "web", Namespace: "shop", Port: 80},
		"http://web.shop.svc:8080/hook?x=1":       {Name: "web", Namespace: "shop", Port: 8080},
		"HTTP://WEB.Shop.SVC.cluster.local.:8080": {Name: "web", Namespace: "shop", Port: 8080},
		"http://web.shop":                         {Name: "web", Namespace: "shop", Port: 80},
		"http://web.shop./":                       {Name: "web", Namespace: "shop", Port: 80},
		"https://web.shop.svc/":                   nil,
		"http://web.bank.svc/":                    nil,
		"http://web/":                             nil, // beside the event bus
		"http://a.web.shop.svc/":                  nil,
		"http://10-0-0-1.shop.pod.cluster.local/": nil,
		"http://web.shop.svc:70000/":              nil,
		"http://web.shop.svc:0/":                  nil,
		"http://me@web.shop.svc/":                 nil,
		"http://.shop.svc/":                       nil,
		"http://10.0.0.1/":                        nil,
		"http://[::1]/":                           nil,
		"ftp://web.shop.svc/":                     nil,
		"://":                                     nil,
		"":                                        nil,
	} {
		require.Equal(t, want, v1alpha1.Sink{URI: uri}.ServiceIn("shop"), uri)
	}
	beside := v1alpha1.Sink{URI: "http://web/"}.ServiceIn(v1alpha1.SystemNamespace)
	require.Equal(t, &v1alpha1.ServiceRef{Name: "web", Namespace: v1alpha1.SystemNamespace, Port: 80}, beside)

	service := func(namespace string, port int32) v1alpha1.Sink {
		return v1alpha1.Sink{Service: &v1alpha1.SinkService{ServiceRef: v1alpha1.ServiceRef{Name: "web", Namespace: namespace, Port: port}}}
	}
	require.Equal(t, &v1alpha1.ServiceRef{Name: "web", Namespace: "shop", Port: 80}, service("", 0).ServiceIn("shop"))
	require.Equal(t, &v1alpha1.ServiceRef{Name: "web", Namespace: "shop", Port: 9}, service("shop", 9).ServiceIn("shop"))
	require.Nil(t, service("bank", 0).ServiceIn("shop"))
	require.Nil(t, v1alpha1.Sink{Lambda: "web"}.ServiceIn("shop"))
}

func TestParseServiceURI(t *testing.T) {
	got, ok := v1alpha1.ParseServiceURI("https://web.shop.svc/a%2Fb?x=1")
	require.True(t, ok)
	require.Equal(t, v1alpha1.ServiceURI{
		ServiceRef: v1alpha1.ServiceRef{Name: "web", Namespace: "shop", Port: 80}, Encrypted: true, Path: "/a%2Fb?x=1", Qualified: true,
	}, got)
	got, ok = v1alpha1.ParseServiceURI("http://web.shop:70000")
	require.True(t, ok)
	require.Equal(t, v1alpha1.ServiceURI{ServiceRef: v1alpha1.ServiceRef{Name: "web", Namespace: "shop"}, Path: "/"}, got)
}
