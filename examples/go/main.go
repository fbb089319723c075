// Shop in Go with net/http: a login, a page, and orders that appear live. See ../README.md.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/gorilla/securecookie"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A toy. A real shop has a table of users with hashed passwords, and limits attempts.
var passwords = map[string]string{"alice": "wonderland", "bob": "builder"}

const lifetime = 8 * time.Hour // of a session

type session struct {
	User, ID string
	Expires  int64
}

type shop struct {
	cookies *securecookie.SecureCookie
	orders  jetstream.JetStream
}

// The session is the signed cookie: any pod can read it, and no pod stores it.
func (shop *shop) session(request *http.Request) (current session, ok bool) {
	cookie, err := request.Cookie("session")
	if err != nil {
		return current, false
	}
	err = shop.cookies.Decode("session", cookie.Value, &current)
	return current, err == nil && current.Expires > time.Now().Unix()
}

func setCookie(response http.ResponseWriter, value string, maxAge int) { // and `Secure: true` with TLS
	http.SetCookie(response, &http.Cookie{Name: "session", Value: value, Path: "/", MaxAge: maxAge,
		HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

func sendJSON(response http.ResponseWriter, status int, value any) {
	response.Header().Set("Content-Type", "application/json")
	response.WriteHeader(status)
	json.NewEncoder(response).Encode(value)
}

func (shop *shop) me(response http.ResponseWriter, request *http.Request) {
	response.Header().Set("Cache-Control", "no-store")
	var user *string
	if current, ok := shop.session(request); ok {
		user = &current.User
	}
	sendJSON(response, http.StatusOK, map[string]*string{"user": user})
}

func (shop *shop) login(response http.ResponseWriter, request *http.Request) {
	user, password := request.PostFormValue("user"), request.PostFormValue("password")
	if password == "" || passwords[user] != password {
		http.Error(response, "Wrong name or password.", http.StatusUnauthorized)
		return
	}
	current := session{user, user + "." + rand.Text(), time.Now().Add(lifetime).Unix()}
	value, err := shop.cookies.Encode("session", current)
	if err != nil {
		http.Error(response, err.Error(), http.StatusInternalServerError)
		return
	}
	setCookie(response, value, int(lifetime.Seconds()))
	http.Redirect(response, request, "/", http.StatusSeeOther)
}

func (shop *shop) logout(response http.ResponseWriter, request *http.Request) {
	if current, ok := shop.session(request); ok {
		// Sidestream ends the event streams of this session at once, on every pod, and rejects a copy of its cookie.
		key := "client." + base64.RawURLEncoding.EncodeToString([]byte(current.ID))
		entry := fmt.Sprintf(`{"at": %d, "until": %d}`, time.Now().Unix(), current.Expires)
		revocations, err := shop.orders.KeyValue(request.Context(), "revocations")
		if err == nil {
			_, err = revocations.PutString(request.Context(), key, entry)
		}
		if err != nil {
			http.Error(response, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	setCookie(response, "", -1)
	http.Redirect(response, request, "/", http.StatusSeeOther)
}

func (shop *shop) order(response http.ResponseWriter, request *http.Request) {
	current, ok := shop.session(request)
	if !ok {
		response.WriteHeader(http.StatusUnauthorized)
		return
	}
	order := map[string]string{"id": rand.Text(), "item": request.PostFormValue("item")}
	if order["item"] == "" || len(order["item"]) > 400 {
		http.Error(response, "Which item?", http.StatusBadRequest)
		return
	}
	data, _ := json.Marshal(order)
	if _, err := shop.orders.Publish(request.Context(), "orders."+current.User+"."+order["id"], data); err != nil {
		http.Error(response, err.Error(), http.StatusInternalServerError)
		return
	}
	sendJSON(response, http.StatusCreated, order)
}

func (shop *shop) live(response http.ResponseWriter, request *http.Request) {
	current, ok := shop.session(request)
	if !ok {
		response.WriteHeader(http.StatusUnauthorized)
		return
	}
	response.Header().Set("Sidestream-Subscribe", "orders."+current.User+".>")
	response.Header().Set("Sidestream-Client", current.ID)
	response.Header().Set("Sidestream-Expires", fmt.Sprint(current.Expires))
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	connection, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	orders, _ := jetstream.New(connection)
	stream := jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}}
	if _, err := orders.CreateOrUpdateStream(ctx, stream); err != nil {
		log.Fatal(err)
	}
	// All pods of a shop need the same secret. Without one, sessions end with the process.
	secret := cmp.Or(os.Getenv("SESSION_SECRET"), rand.Text())
	cookies := securecookie.New([]byte(secret), nil).MaxAge(int(lifetime.Seconds()))
	cookies.SetSerializer(securecookie.JSONEncoder{})
	shop := &shop{cookies, orders}

	http.HandleFunc("GET /{$}", func(response http.ResponseWriter, request *http.Request) {
		http.ServeFile(response, request, "../shop.html")
	})
	http.HandleFunc("GET /me", shop.me)
	http.HandleFunc("POST /login", shop.login)
	http.HandleFunc("POST /logout", shop.logout)
	http.HandleFunc("POST /orders", shop.order)
	http.HandleFunc("GET /orders/live", shop.live)
	server := &http.Server{Addr: "127.0.0.1:" + cmp.Or(os.Getenv("PORT"), "3000")}
	go func() {
		if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			log.Fatal(err)
		}
	}()
	<-ctx.Done()
	server.Shutdown(context.Background()) // requests in progress are completed
}
