import com.launchdarkly.eventsource.ErrorStrategy;
import com.launchdarkly.eventsource.FaultEvent;
import com.launchdarkly.eventsource.MessageEvent;
import com.launchdarkly.eventsource.StreamEvent;
import jakarta.ws.rs.client.ClientBuilder;
import jakarta.ws.rs.sse.SseEventSource;
import java.net.URI;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.Response;
import okhttp3.sse.EventSource;
import okhttp3.sse.EventSourceListener;
import okhttp3.sse.EventSources;

/** One Java client library, used as its README says: Clients LIBRARY URL. Prints what ../clients.mjs prints. */
public class Clients {
    private static final long PAUSE_MILLIS = 300;

    static String quoted(String text) {
        if (text == null) return "null";
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            boolean plain = c >= ' ' && c <= '~' && c != '"' && c != '\\';
            out.append(plain ? String.valueOf(c) : String.format("\\u%04x", (int) c));
        }
        return out.append('"').toString();
    }

    static synchronized void event(String name, String data, String id) {
        String known = name == null || name.isEmpty() ? "message" : name;
        String fields = "\"name\":" + quoted(known) + ",\"data\":" + quoted(data) + ",\"id\":" + quoted(id);
        System.out.println("{\"kind\":\"event\"," + fields + "}");
        System.out.flush();
        if ("END".equals(data)) Runtime.getRuntime().halt(0);
    }

    static synchronized void show(String kind, Object message) {
        System.out.println("{\"kind\":" + quoted(kind) + ",\"message\":" + quoted(String.valueOf(message)) + "}");
        System.out.flush();
    }

    static void okhttpEventsource(String url) {
        var source = new com.launchdarkly.eventsource.EventSource.Builder(URI.create(url))
                .errorStrategy(ErrorStrategy.alwaysContinue())
                .retryDelay(500, TimeUnit.MILLISECONDS)
                .build();
        for (StreamEvent given : source.anyEvents()) {
            if (given instanceof MessageEvent message) {
                event(message.getEventName(), message.getData(), message.getLastEventId());
            } else if (given instanceof FaultEvent fault) {
                show("error", fault.getCause());
            }
        }
        show("over", "the iterator ended");
    }

    /** It does not reconnect: the shortest loop. */
    static void okhttpSse(String url) throws InterruptedException {
        var client = new OkHttpClient.Builder().readTimeout(60, TimeUnit.SECONDS).build();
        var sources = EventSources.createFactory(client);
        String[] last = {null};
        while (true) {
            var ended = new CountDownLatch(1);
            var request = new Request.Builder().url(url).header("Accept", "text/event-stream");
            if (last[0] != null) request.header("Last-Event-ID", last[0]);
            sources.newEventSource(request.build(), new EventSourceListener() {
                @Override public void onEvent(EventSource source, String id, String type, String data) {
                    if (id != null) last[0] = id;
                    event(type, data, id);
                }

                @Override public void onClosed(EventSource source) {
                    show("error", "closed");
                    ended.countDown();
                }

                @Override public void onFailure(EventSource source, Throwable error, Response response) {
                    show("error", error);
                    ended.countDown();
                }
            });
            ended.await();
            Thread.sleep(PAUSE_MILLIS);
        }
    }

    static void jersey(String url) throws InterruptedException {
        var target = ClientBuilder.newClient().target(url);
        var source = SseEventSource.target(target).reconnectingEvery(500, TimeUnit.MILLISECONDS).build();
        source.register(
                given -> event(given.getName(), given.readData(), given.getId()),
                error -> show("error", error),
                () -> show("over", "complete"));
        source.open();
        Thread.sleep(Long.MAX_VALUE);
    }

    public static void main(String[] arguments) throws InterruptedException {
        switch (arguments[0]) {
            case "okhttp-eventsource" -> okhttpEventsource(arguments[1]);
            case "okhttp-sse" -> okhttpSse(arguments[1]);
            case "jersey" -> jersey(arguments[1]);
            default -> show("over", "no library " + arguments[0]);
        }
    }
}
