//! The story that the sample publisher tells: a small factory with orders, machines and now and then an alarm.

use std::collections::HashMap;

use fastrand::Rng;
use serde_json::{Value, json};

/// The names of events that a page must listen for; an `EventSource` hears only those it names.
pub(super) const EVENT_NAMES: [&str; 9] = [
    "created",
    "paid",
    "packed",
    "shipped",
    "delivered",
    "cancelled",
    "telemetry",
    "alert",
    "announcement",
];

/// One thing that happens.
#[derive(Debug)]
pub(super) struct Happening {
    pub(super) subject: String,
    /// The header `Sidestream-Event`.
    pub(super) event: &'static str,
    /// The header `Sidestream-Priority`.
    pub(super) priority: Option<&'static str>,
    /// The payload, without the time of publishing.
    pub(super) body: Value,
}

/// What has happened so far, and so what may come next. The same seed tells the same story.
pub(super) struct Scenario {
    random: Rng,
    orders: Vec<Order>,
    orders_created: u32,
    machines: [Machine; 3],
    published: u64,
    numbers: HashMap<String, u64>,
}

struct Order {
    id: u32,
    /// Index into `STATES`.
    state: usize,
    customer: &'static str,
    cents: u32,
}

struct Machine {
    name: &'static str,
    celsius: f64,
}

impl Scenario {
    /// A quiet morning: no orders, cool machines.
    pub(super) fn new(seed: u64) -> Self {
        let machines = ["press-1", "press-2", "oven-1"].map(|name| Machine {
            name,
            celsius: 62.0,
        });
        Self {
            random: Rng::with_seed(seed),
            orders: Vec::new(),
            orders_created: 1040,
            machines,
            published: 0,
            numbers: HashMap::new(),
        }
    }

    /// What happens next.
    pub(super) fn next(&mut self) -> Happening {
        self.published += 1;
        let mut happening = match self.published {
            n if n % ALERT_EVERY == 0 => self.alert(),
            n if n % ANNOUNCEMENT_EVERY == 0 => self.announcement(),
            _ if self.random.u8(..100) < 40 => self.telemetry(),
            _ => self.order(),
        };
        happening.body["subject"] = json!(happening.subject);
        happening.body["numbers"] = self.number(&happening.subject);
        happening
    }

    fn order(&mut self) -> Happening {
        let open = self.orders.len();
        if open == 0 || (open < ORDERS_OPEN_MAX && self.random.u8(..100) < 25) {
            self.create();
        } else {
            let chosen = self.random.usize(..open);
            // Open orders move to the back, so that the choice never starves one for long.
            let mut order = self.orders.remove(chosen);
            order.state += 1;
            self.orders.push(order);
        }
        let cancelled = self.random.u8(..100) < 6;
        let Some(order) = self.orders.last() else {
            unreachable!("an order was just pushed")
        };
        // Only what is not paid for yet can be cancelled.
        let state = if order.state == 0 && cancelled {
            "cancelled"
        } else {
            STATES[order.state]
        };
        let happening = Happening {
            subject: format!("demo.orders.{}.{state}", order.id),
            event: state,
            priority: None,
            body: json!({
                "order": order.id,
                "state": state,
                "customer": order.customer,
                "total": format!("{}.{:02}", order.cents / 100, order.cents % 100),
            }),
        };
        if matches!(state, "delivered" | "cancelled") {
            self.orders.pop();
        }
        happening
    }

    fn create(&mut self) {
        self.orders_created += 1;
        self.orders.push(Order {
            id: self.orders_created,
            state: 0,
            customer: CUSTOMERS[self.random.usize(..CUSTOMERS.len())],
            cents: self.random.u32(490..29_900),
        });
    }

    fn telemetry(&mut self) -> Happening {
        let chosen = self.random.usize(..self.machines.len());
        let machine = &mut self.machines[chosen];
        machine.celsius = (machine.celsius + self.random.f64() * 4.0 - 1.6).clamp(40.0, 99.0);
        Happening {
            subject: format!("demo.telemetry.{}", machine.name),
            event: "telemetry",
            priority: Some("telemetry"),
            body: json!({
                "machine": machine.name,
                "celsius": tenths(machine.celsius),
                "rpm": 1450 + self.random.u32(..60),
            }),
        }
    }

    /// The hottest machine gives the alarm and is cooled.
    fn alert(&mut self) -> Happening {
        let hottest = self
            .machines
            .iter_mut()
            .max_by(|one, other| one.celsius.total_cmp(&other.celsius));
        let Some(machine) = hottest else {
            unreachable!("there are three machines")
        };
        let celsius = tenths(machine.celsius);
        machine.celsius = 55.0;
        Happening {
            subject: "demo.alerts".into(),
            event: "alert",
            priority: Some("critical"),
            body: json!({ "machine": machine.name, "celsius": celsius, "message": format!("{} runs hot, cooling", machine.name) }),
        }
    }

    /// Core NATS, in no stream: live only.
    fn announcement(&mut self) -> Happening {
        let text = ANNOUNCEMENTS[self.random.usize(..ANNOUNCEMENTS.len())];
        Happening {
            subject: "announcements.floor".into(),
            event: "announcement",
            priority: None,
            body: json!({ "message": text }),
        }
    }

    /// How many events there were, this one included, for each filter that selects it and that a reader may well
    /// have asked for. A reader of one filter sees its numbers rise by one, or knows what it misses.
    fn number(&mut self, subject: &str) -> Value {
        let tokens: Vec<&str> = subject.split('.').collect();
        let mut filters: Vec<String> = (1..tokens.len())
            .map(|n| format!("{}.>", tokens[..n].join(".")))
            .collect();
        if tokens[1] != "orders" {
            // Of an order's own subjects each is used once: nothing to count there.
            filters.push(subject.into());
        }
        let mut numbers = serde_json::Map::new();
        for filter in filters {
            let number = self.numbers.entry(filter.clone()).or_default();
            *number += 1;
            numbers.insert(filter, json!(number));
        }
        if matches!(tokens[tokens.len() - 1], "delivered" | "cancelled") {
            // The order is over: its counter would stay for ever.
            self.numbers
                .remove(&format!("{}.>", tokens[..tokens.len() - 1].join(".")));
        }
        Value::Object(numbers)
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// The way of an order.
const STATES: [&str; 5] = ["created", "paid", "packed", "shipped", "delivered"];

/// Few enough to follow with the eye.
const ORDERS_OPEN_MAX: usize = 8;

/// In events; at five a second an alarm every twelve seconds is seen by whoever looks, and annoys nobody.
const ALERT_EVERY: u64 = 61;
const ANNOUNCEMENT_EVERY: u64 = 97;

const CUSTOMERS: [&str; 8] = [
    "Ines", "Tomasz", "Aiko", "Léa", "Mateo", "Nia", "Søren", "Priya",
];
const ANNOUNCEMENTS: [&str; 4] = [
    "Forklift training at noon, gate 3",
    "Shift change in ten minutes",
    "Loading bay 2 is free again",
    "Fire drill tomorrow at nine",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn story(seed: u64) -> Vec<Happening> {
        let mut scenario = Scenario::new(seed);
        (0..5000).map(|_| scenario.next()).collect()
    }

    #[test]
    fn every_order_moves_through_its_states_in_order_or_is_cancelled_at_once() {
        let mut ways: HashMap<u64, Vec<&str>> = HashMap::new();
        for happening in story(7)
            .iter()
            .filter(|happening| happening.subject.starts_with("demo.orders."))
        {
            ways.entry(happening.body["order"].as_u64().unwrap())
                .or_default()
                .push(happening.event);
        }
        assert!(ways.len() > 100, "orders come all the time");
        for (order, way) in ways {
            assert!(
                way == ["cancelled"] || STATES.starts_with(&way),
                "order {order} went {way:?}"
            );
        }
    }

    #[test]
    fn the_numbers_of_each_filter_rise_by_one() {
        let mut last: HashMap<String, u64> = HashMap::new();
        for happening in story(11) {
            for (filter, number) in happening.body["numbers"].as_object().unwrap() {
                let before = last
                    .insert(filter.clone(), number.as_u64().unwrap())
                    .unwrap_or(0);
                assert_eq!(number.as_u64(), Some(before + 1), "{filter}");
            }
        }
        assert!(last["demo.>"] > last["demo.orders.>"]);
        assert!(last["announcements.>"] > 10);
    }

    #[test]
    fn counters_of_finished_orders_are_given_back() {
        let mut scenario = Scenario::new(3);
        for _ in 0..20_000 {
            scenario.next();
        }
        assert!(
            scenario.numbers.len() < 30,
            "{} counters",
            scenario.numbers.len()
        );
    }

    #[test]
    fn every_event_has_a_name_that_the_page_listens_for() {
        for happening in story(5) {
            assert!(
                EVENT_NAMES.contains(&happening.event),
                "{}",
                happening.event
            );
        }
    }
}
