package shop

import (
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
)

// maxOrders are kept, the oldest goes.
const maxOrders = 1000

// Order that somebody placed.
type Order struct {
	Code     string  `json:"code"` // a UUID
	Customer string  `json:"customer"`
	Total    float64 `json:"total"`
	Currency string  `json:"currency"`
	Status   string  `json:"status"` // CREATED, PACKED or SHIPPED
}

// book of orders, the newest last.
type book struct {
	mu     sync.Mutex
	orders []Order
}

func (b *book) place(customer string, total float64) Order {
	order := Order{Code: newUUID(), Customer: customer, Total: total, Currency: "EUR", Status: "CREATED"}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.orders = append(b.orders[max(0, len(b.orders)-maxOrders+1):], order)
	return order
}

func (b *book) takeBack(code string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.orders = slices.DeleteFunc(b.orders, func(o Order) bool { return o.Code == code })
}

func (b *book) find(code string) (Order, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.orders, func(o Order) bool { return o.Code == code })
	if i < 0 {
		return Order{}, false
	}
	return b.orders[i], true
}

// setStatus returns the order as it is then; false where there is none, or where it
// has this status already.
func (b *book) setStatus(code, status string) (Order, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.orders, func(o Order) bool { return o.Code == code })
	if i < 0 || b.orders[i].Status == status {
		return Order{}, false
	}
	b.orders[i].Status = status
	return b.orders[i], true
}

func (b *book) all() []Order {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Order{}, b.orders...)
}

// newUUID is a random UUID (RFC 9562, section 5.4).
func newUUID() string {
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails, see its doc
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
