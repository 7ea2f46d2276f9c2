package meshtest

import "net/http"

// SpelledPaths are literals that have many spellings, to stand in rules that need
// a token, before one that is open to all.
func SpelledPaths() []string {
	return []string{"/orders:cancel", "/größe", "/a%20b", "/@me/{*}/x|y", "/a,b/{**}"}
}

// Spellings of paths, and the statuses that a request without a token must meet
// behind rules for [SpelledPaths]; both are right where two are given.
func Spellings() map[string][]int {
	all := map[string][]int{}
	for _, path := range []string{
		"/orders:cancel", "/orders%3Acancel", "/orders%3acancel", "//orders%3acancel", "/x/../orders%3Acancel", "/%2e/orders%3acancel", `/x\..\orders%3acancel`,
		"/%6frders%3acancel", "/orders%3acancel?x=1", "/gr%C3%B6%C3%9Fe", "/gr%c3%b6%c3%9fe", "/gr%C3%b6%c3%9Fe", "/a%20b", "/%61%20b",
		"/@me/7/x%7Cy", "/%40me/7/x%7cy", "/%40me/7/x|y", "/a,b/", "/a%2cb/c", "/a%2Cb/c/d", "/a%2Cb//c",
	} {
		all[path] = []int{http.StatusUnauthorized}
	}
	for _, path := range []string{"/größe", "/gr\xc3\xb6%c3%9fe"} {
		all[path] = []int{http.StatusUnauthorized, http.StatusBadRequest}
	}
	for _, path := range []string{
		"/orders:cancel;x", "/orders:cancel;", "/;x/orders:cancel", "/..;/orders:cancel", "/orders:cancel%3bx", "/orders:cancel%3Bx", "/orders:cancel%00",
		"/orders:cancel%0a", "/orders:cancel%0D%0Ax", "/orders:cancel%7f", "/orders:cancel%3f", "/orders:cancel%3Fx", "/orders:cancel%23", "/%2forders:cancel",
		"/orders:cancel%2F", "/%5Corders:cancel", "/orders:cancel#x", "/gr%f6%dfe", "/gr%c3%b6%c3", "/%c0%af", "/%c1%a1%20b", "/%e0%81%a1%20b", "/%f0%80%81%a1%20b",
		"/%ed%a0%80", "/%f4%90%80%80", "/gr\xf6\xdfe", "/%zz", "/%", "/a%2",
	} {
		all[path] = []int{http.StatusBadRequest}
	}
	for _, path := range []string{"/orders", "/orders%2bcancel", "/a+b", "/a%2520b", "/gr%C3%B6%C3%9F", "/@me//x%7Cy", "/a,b", "/caf%c3%a9/%7B%22x%22%7D"} {
		all[path] = []int{http.StatusOK}
	}
	return all
}
