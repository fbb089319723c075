//! Scenario of the sample publisher: a small factory with orders, machines and occasional alarms.

use std::collections::HashMap;

use fastrand::Rng;
use serde_json::{Value, json};

/// Event names that the page registers; an `EventSource` dispatches only registered names.
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

/// Event to publish.
#[derive(Debug)]
pub(super) struct Occurrence {
    pub(super) subject: String,
    /// The header `Sidestream-Event`.
    pub(super) event: &'static str,
    /// The header `Sidestream-Priority`.
    pub(super) priority: Option<&'static str>,
    /// The payload, without the time of publishing.
    pub(super) body: Value,
}

/// State of the factory. The same seed gives the same sequence of events.
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
    /// Starts without orders and with cool machines.
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

    /// Returns the next event.
    pub(super) fn next(&mut self) -> Occurrence {
        self.published += 1;
        let mut occurrence = match self.published {
            n if n % ALERT_EVERY == 0 => self.alert(),
            n if n % ANNOUNCEMENT_EVERY == 0 => self.announcement(),
            _ if self.random.u8(..100) < 40 => self.telemetry(),
            _ => self.order(),
        };
        occurrence.body["subject"] = json!(occurrence.subject);
        occurrence.body["numbers"] = self.number(&occurrence.subject);
        occurrence
    }

    fn order(&mut self) -> Occurrence {
        let open = self.orders.len();
        if open == 0 || (open < ORDERS_OPEN_MAX && self.random.u8(..100) < 25) {
            self.create();
        } else {
            let chosen = self.random.usize(..open);
            // The chosen order moves to the end of the list.
            let mut order = self.orders.remove(chosen);
            order.state += 1;
            self.orders.push(order);
        }
        let cancelled = self.random.u8(..100) < 6;
        let Some(order) = self.orders.last() else {
            unreachable!("an order was just pushed")
        };
        // Only unpaid orders can be cancelled.
        let state = if order.state == 0 && cancelled {
            "cancelled"
        } else {
            STATES[order.state]
        };
        let occurrence = Occurrence {
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
        occurrence
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

    fn telemetry(&mut self) -> Occurrence {
        let chosen = self.random.usize(..self.machines.len());
        let machine = &mut self.machines[chosen];
        machine.celsius = (machine.celsius + self.random.f64() * 4.0 - 1.6).clamp(40.0, 99.0);
        Occurrence {
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

    /// Raises an alarm for the hottest machine and cools it.
    fn alert(&mut self) -> Occurrence {
        let hottest = self
            .machines
            .iter_mut()
            .max_by(|one, other| one.celsius.total_cmp(&other.celsius));
        let Some(machine) = hottest else {
            unreachable!("there are three machines")
        };
        let celsius = tenths(machine.celsius);
        machine.celsius = 55.0;
        Occurrence {
            subject: "demo.alerts".into(),
            event: "alert",
            priority: Some("critical"),
            body: json!({ "machine": machine.name, "celsius": celsius, "message": format!("{} runs hot, cooling", machine.name) }),
        }
    }

    /// Published on core NATS only: no stream keeps it.
    fn announcement(&mut self) -> Occurrence {
        let text = ANNOUNCEMENTS[self.random.usize(..ANNOUNCEMENTS.len())];
        Occurrence {
            subject: "announcements.floor".into(),
            event: "announcement",
            priority: None,
            body: json!({ "message": text }),
        }
    }

    /// Number of events up to this one for each filter that matches the subject. A
    /// client of one filter detects a missing event because the numbers rise by one.
    fn number(&mut self, subject: &str) -> Value {
        let tokens: Vec<&str> = subject.split('.').collect();
        let mut filters: Vec<String> = (1..tokens.len())
            .map(|n| format!("{}.>", tokens[..n].join(".")))
            .collect();
        if tokens[1] != "orders" {
            // Each subject of an order is used once: no need to count.
            filters.push(subject.into());
        }
        let mut numbers = serde_json::Map::new();
        for filter in filters {
            let number = self.numbers.entry(filter.clone()).or_default();
            *number += 1;
            numbers.insert(filter, json!(number));
        }
        if matches!(tokens[tokens.len() - 1], "delivered" | "cancelled") {
            // The order is complete: remove its counter.
            self.numbers
                .remove(&format!("{}.>", tokens[..tokens.len() - 1].join(".")));
        }
        Value::Object(numbers)
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// States of an order.
const STATES: [&str; 5] = ["created", "paid", "packed", "shipped", "delivered"];

/// Few enough to follow on the page.
const ORDERS_OPEN_MAX: usize = 8;

/// Every 61 events: an alarm about every twelve seconds.
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

    fn story(seed: u64) -> Vec<Occurrence> {
        let mut scenario = Scenario::new(seed);
        (0..5000).map(|_| scenario.next()).collect()
    }

    #[test]
    fn order_moves_through_its_states_or_is_cancelled_first() {
        let mut ways: HashMap<u64, Vec<&str>> = HashMap::new();
        for occurrence in story(7)
            .iter()
            .filter(|occurrence| occurrence.subject.starts_with("demo.orders."))
        {
            ways.entry(occurrence.body["order"].as_u64().unwrap())
                .or_default()
                .push(occurrence.event);
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
    fn numbers_of_each_filter_rise_by_one() {
        let mut last: HashMap<String, u64> = HashMap::new();
        for occurrence in story(11) {
            for (filter, number) in occurrence.body["numbers"].as_object().unwrap() {
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
    fn counters_of_finished_orders_are_removed() {
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
    fn every_event_name_is_registered_by_the_page() {
        for occurrence in story(5) {
            assert!(
                EVENT_NAMES.contains(&occurrence.event),
                "{}",
                occurrence.event
            );
        }
    }
}
